"""Says of code that has changed since a commit that it gives the same results, bit for bit: no record of it is stale.

`python -m tests.code COMMIT [PART ...]`, once `check` and the tests of determinism have shown it. It adds the digests
to `bench/plan/same.json`. Parts are those of `bench/plan/stale.py`; without any, all that have changed.
"""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.measure.code import Code
from bench.plan.stale import PARTS, REGISTRIES, SAME, digest

ROOT = Path(__file__).parent.parent


def changed(before: Code, now: Code, parts: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield each of the parts, by part and name, whose digests differ, with the two."""
    for part in parts:
        registry, names = PARTS[part].registry, [""]
        if registry:
            folder = REGISTRIES[registry][0]
            names = [*now.registered(folder, registry), *{"backbones": ["timm:"], "priors": ["*-T"]}.get(registry, [])]
            names += now.registered(folder, "_ENTRIES") if registry == "priors" else []
        for name in names:
            then, today = digest(before, part, name), digest(now, part, name)
            if then and today and then != today:
                yield part, name, then, today


def with_pair(groups: list[list[str]], then: str, today: str) -> list[list[str]]:
    """Return the groups with one in which both digests are, and with all that is equal to either of them."""
    apart = [group for group in groups if not {then, today} & set(group)]
    joined = {then, today, *(each for group in groups if group not in apart for each in group)}
    return [*apart, sorted(joined)]


def main(commit: str, *parts: str) -> None:
    archive = subprocess.run(
        ["git", "archive", commit, "bench", "methods", "priors"], cwd=ROOT, capture_output=True, check=True
    )
    groups = json.loads(SAME.read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
        for part, name, then, today in changed(Code(Path(folder)), Code(ROOT), parts or tuple(PARTS)):
            groups = with_pair(groups, then, today)
            print(f"{part} {name}: {then} and {today} are the same")
    SAME.write_text(json.dumps(groups, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
