"""What the numbers of a report were made of, and what is not in them."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from bench.report.blocks import Strong, Text
from bench.report.collect import Collected, Result
from bench.report.labels import percent
from bench.report.tables import one_line
from bench.store.record import Record


def absences(found: Collected) -> list[tuple[str, list[str]]]:
    """Return what is not in the numbers, by kind, and why."""
    budgets: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for result in found.results:
        reasons: dict[str, list[int]] = defaultdict(list)
        for seed in result.missing:
            reasons[found.why_skipped(result, seed) or ""].append(seed)
        for why, there in reasons.items():
            seeds = f"{'seed' if len(there) == 1 else 'seeds'} {', '.join(map(str, there))}"
            budgets[f"{result.group.label}, {result.label}", seeds, why].append(percent(result.budget))
    missing, skipped = (
        [
            f"{word}: {arm} at {', '.join(shares)}: {seeds}{f': {why}' if why else ''}"
            for (arm, seeds, why), shares in budgets.items()
            if bool(why) == (word == "skipped")
        ]
        for word in ("missing", "skipped")
    )
    failed = [
        f"{record.status}: {cell_named(result, record)}: {record.error}"
        for result in found.results
        for record in result.failed
    ]
    damaged = [f"damaged: {one.path.name}: {one.reason}" for one in found.damaged]
    other = [f"left out: {counted(found.left_out, 'record')} made with settings that the grid does not have"]
    other = other if found.left_out else []
    other += [
        f"left out: record {record.id} ({record.dataset_title}, {record.cell.arm} at {percent(record.cell.budget)},"
        f" seed {record.cell.seed}): there is a newer one, or one of a newer method or prior"
        for record in found.replaced
    ]
    kinds = [("Missing", missing), ("Failed", failed), ("Skipped", skipped), ("Damaged files", damaged)]
    kinds += [("Records left out", other)]
    return [(title, lines) for title, lines in kinds if lines]


def provenance(found: Collected) -> Iterator[Text]:
    """Yield a line for each fact about the finished records' origin, with the counts where they differ."""
    records = found.done or [record for result in found.results for record in result.failed]
    facts: dict[str, Callable[[Record], Any]] = {
        "Code": lambda record: _code(record.provenance.get("code")),
        "Device": lambda record: record.provenance.get("device"),
        "GPU": lambda record: record.provenance.get("gpu"),
        "CPU": lambda record: record.provenance.get("cpu"),
        "CPU threads": lambda record: record.provenance.get("threads"),
        "Platform": lambda record: record.provenance.get("platform"),
        "Python": lambda record: record.provenance.get("python"),
        "CUDA": lambda record: record.provenance.get("cuda"),
    }
    packages = [record.provenance.get("packages") for record in records]
    for name in sorted({name for each in packages if isinstance(each, dict) for name in each}):
        facts[name] = lambda record, name=name: (record.provenance.get("packages") or {}).get(name)  # type: ignore[misc]
    for method in sorted({record.cell.method for record in records}):
        facts[f"Version of method {method}"] = lambda record, method=method: (  # type: ignore[misc]
            record.inputs.method_version if record.cell.method == method else None
        )
    for group in found.groups:
        if group.data:
            yield one_line(f"Data digest of {group.label}: {group.data}")
    for name, fact in facts.items():
        counts = Counter(_plain(value) for record in records if (value := fact(record)) is not None)
        if len(counts) == 1:
            yield one_line(f"{name}: {next(iter(counts))}")
        elif counts:
            values = "; ".join(f"{value} ({counted(count, 'record')})" for value, count in sorted(counts.items()))
            yield Strong("Mixed:"), f" {one_line(f'{name}: {values}')}"
    times = sorted(_plain(time) for record in records if (time := record.provenance.get("time")))
    if times:
        yield one_line(f"Made: {times[0]}" + (f" to {times[-1]}" if times[0] != times[-1] else ""))


def cell_named(result: Result, record: Record) -> str:
    """Return what to call a cell: its data, arm, budget and seed."""
    return f"{result.name}, seed {record.cell.seed}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as 1 seed, 2 seeds."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _code(code: Any) -> str | None:
    if not isinstance(code, dict):
        return None
    commit = f"commit {code['commit']}" if code.get("commit") else "not from a git checkout"
    return f"{code.get('version')}, {commit}" + (", with uncommitted changes" if code.get("dirty") else "")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
