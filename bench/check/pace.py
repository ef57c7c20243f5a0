"""Time, which no file can hold: the steps of this tree against those of another revision, run in turn in one job."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

from bench.check.baseline import Key
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
    with tempfile.TemporaryDirectory() as folder, _worktree(revision, Path(folder) / "tree") as other:
        trees = {"now": HERE, "then": other}
        logs, alone = [], True
        for turn in range(rounds):
            order = ("then", "now") if turn % 2 == 0 else ("now", "then")
            records = {name: _run(trees[name], name, turn, arguments, Path(folder), revision) for name in order}
            alone &= not any(beside_others(each) for tree in records.values() for each in tree.values())
            logs += [log(_seconds(each) / _seconds(records["then"][cell])) for cell, each in records["now"].items()]
    found = interval(logs, CONFIDENCE)
    assert found is not None
    return Pace(revision, found.n, exp(found.mean), exp(found.low), exp(found.high), alone)


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


def _run(
    tree: Path, name: str, turn: int, arguments: Sequence[str], folder: Path, revision: str
) -> dict[Key, Finished]:
    """Run the grid in a process of its own with the code of a tree; return the record of each cell."""
    results = folder / f"{name}-{turn}"
    command = [sys.executable, "-m", "bench", "run", *arguments, "--set", f"seeds=[{turn}]", "--results", str(results)]
    environment = os.environ | {"PYTHONPATH": str(tree), "BENCH_CACHE": str(folder / f"cache-{name}")}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    found = read_records(next(results.glob("*/"), results))[0]
    records = [record for record in found if isinstance(record, Finished)]
    if done.returncode or not records or len(records) < len(found):
        side = f"revision {revision}" if name == "then" else "this tree"
        raise UserError(f"--against {revision}: {side} cannot run this grid: {done.stderr.strip()[-500:]}")
    cells = [(record, record.cell) for record in records]
    return {(cell.dataset, cell.arm, cell.budget): record for record, cell in cells}
