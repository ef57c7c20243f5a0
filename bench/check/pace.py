"""Time of a step in this tree, compared with another revision's in one job: stored times would not compare."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

from bench.check.compare import PACE, Finding
from bench.core.errors import UserError
from bench.core.stats import interval
from bench.report.facts import beside_others
from bench.store.record import Finished, read_records

HERE = Path(__file__).parent.parent.parent
ROUNDS = 3  # in each, both revisions run every cell once
CONFIDENCE = 0.99  # of each bound


@dataclass(frozen=True)
class Pace:
    """Seconds of training as a ratio to another revision's, with its bounds, over n pairs of cells.

    `alone`: all of them were measured alone.
    """

    revision: str
    n: int
    ratio: float
    low: float
    high: float
    alone: bool

    def finding(self, slower: float) -> Finding:
        """Return it as a finding, red when the steps are slower than `slower` times the other's beyond doubt."""
        now = f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f}, n={self.n}) times that"
        if not self.alone:
            now += ", not measured alone: it decides nothing"
        return Finding("all cells", PACE, self.revision, now, red=self.alone and self.low > slower)


def measure_pace(revision: str, arguments: Sequence[str], rounds: int = ROUNDS) -> Pace:
    """Run a grid in this tree and in a worktree of a revision, in turn, and return the ratio of their training time.

    `arguments` are those of `run`, their paths absolute. A pair of cells is the same cell in both trees in one round;
    which tree goes first alternates. Raises UserError when the revision is not there or cannot run the grid.
    """
    logs, alone = [], True
    with tempfile.TemporaryDirectory() as folder, _worktree(revision, Path(folder) / "then") as there:
        for turn in range(rounds):
            found = {}
            for tree in (there, HERE) if turn % 2 == 0 else (HERE, there):
                name = "then" if tree is there else "now"
                words = [*arguments, "--set", f"seeds=[{turn}]", "--results", str(Path(folder) / f"{name}-{turn}")]
                found[name] = _run(tree, words, Path(folder) / f"cache-{name}", revision)
                alone &= not any(map(beside_others, found[name].values()))
            logs += [log(_seconds(record) / _seconds(found["then"][cell])) for cell, record in found["now"].items()]
    bounds = interval(logs, CONFIDENCE)
    assert bounds is not None
    return Pace(revision, bounds.n, exp(bounds.mean), exp(bounds.low), exp(bounds.high), alone)


def _seconds(record: Finished) -> float:
    return record.ledger.seconds["train"]


@contextmanager
def _worktree(revision: str, path: Path) -> Iterator[Path]:
    commit = _git(revision, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    _git(revision, "worktree", "add", "--detach", str(path), commit)
    try:
        yield path
    finally:
        _git(revision, "worktree", "remove", "--force", str(path))


def _git(revision: str, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"--against {revision}: git is not installed") from error
    if done.returncode:
        raise UserError(f"--against {revision}: {done.stderr.strip() or f'no such revision in {HERE}'}")
    return done.stdout.strip()


def _run(tree: Path, words: Sequence[str], cache: Path, revision: str) -> dict[str, Finished]:
    """Run the grid in a process of its own with the code of a tree; return the record of each cell, by its name."""
    environment = os.environ | {"PYTHONPATH": str(tree), "BENCH_CACHE": str(cache)}
    command = [sys.executable, "-m", "bench", "run", *words]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    results = Path(words[-1])
    found = read_records(next(results.glob("*/"), results))[0]
    records = {str(record.cell): record for record in found if isinstance(record, Finished)}
    if done.returncode or not records or len(records) < len(found):
        side = "this tree" if tree is HERE else f"revision {revision}"
        raise UserError(f"--against {revision}: {side} cannot run this grid: {done.stderr.strip()[-500:]}")
    return records
