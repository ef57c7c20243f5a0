"""Where the numbers come from: code, device, packages and data of the records."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.report.blocks import Block, Bullets, Heading, Strong, Text
from bench.report.collect import Collected
from bench.report.tables import counted, one_line
from bench.store.record import Record

FACTS = {
    "Device": "device",
    "GPU": "gpu",
    "CPU": "cpu",
    "CPU threads": "threads",
    "Platform": "platform",
    "Python": "python",
    "CUDA": "cuda",
}


def section(found: Collected) -> Iterator[Block]:
    """Yield a line for each fact about the records' origin."""
    yield Heading("Where the numbers come from")
    lines = [one_line(f"Data digest of {group.label}: {group.data}") for group in found.groups if group.data]
    yield Bullets((*lines, *_provenance(found)))


def _provenance(found: Collected) -> Iterator[Text]:
    records: Sequence[Record] = found.done or [record for result in found.results for record in result.failed]
    origins = [record.provenance for record in records]
    facts: dict[str, Iterable[Any]] = {"Code": [code_of(origin) for origin in origins]}
    facts |= {name: [origin.get(key) for origin in origins] for name, key in FACTS.items()}
    packages = [origin.get("packages", {}) for origin in origins]
    facts |= {
        name: [each.get(name) for each in packages] for name in sorted({name for each in packages for name in each})
    }
    for method in sorted({record.cell.method for record in records}):
        versions = [record.inputs.method_version for record in records if record.cell.method == method]
        facts[f"Version of method {method}"] = versions
    return origin_lines(facts, [origin.get("time") for origin in origins])


def origin_lines(facts: Mapping[str, Iterable[Any]], times: Iterable[Any]) -> Iterator[Text]:
    """Yield a line for each fact that the records tell, with the counts where they differ, and when they were made."""
    for name, values in facts.items():
        counts = Counter(_plain(value) for value in values if value is not None)
        if len(counts) == 1:
            yield one_line(f"{name}: {next(iter(counts))}")
        elif counts:
            told = "; ".join(f"{value} ({counted(count, 'record')})" for value, count in sorted(counts.items()))
            yield Strong("Mixed:"), f" {one_line(f'{name}: {told}')}"
    made = sorted(_plain(time) for time in times if time)
    if made:
        yield one_line(f"Made: {made[0]}" + (f" to {made[-1]}" if made[0] != made[-1] else ""))


def code_of(provenance: Mapping[str, Any]) -> str | None:
    """Return which code a record says that it was made by, None where it says nothing."""
    code = provenance.get("code")
    if not isinstance(code, dict):
        return None
    commit = f"commit {code['commit']}" if code.get("commit") else "not from a git checkout"
    return f"{code.get('version')}, {commit}" + (", with uncommitted changes" if code.get("dirty") else "")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
