"""A check from its options to its report: which grid, over which seeds, where, and what becomes of the results."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.check.baseline import (
    MIN_SEEDS,
    SHIPPED,
    Baseline,
    Key,
    measured,
    read_baseline,
    with_repeats,
    write_baseline,
)
from bench.check.compare import Finding, compare
from bench.check.pace import measure_pace
from bench.check.report import check_markdown, check_text, write_junit
from bench.core.device import threads
from bench.core.errors import UserError
from bench.core.paths import Places
from bench.grid.load import find_grid, load_grid
from bench.grid.schema import Grid
from bench.plan.graph import Missing, Task
from bench.plan.state import Outcome
from bench.store.record import read_records

UPDATE_SEEDS = 30
REPEATED_SEEDS = 6


class Gate:
    """A check of one grid. Raises UserError on a mistake in the options, before anything runs.

    Args:
        grid, profile, settings: as `load_grid` takes them.
        path: the baseline's file; None: the one that is shipped for the grid.
        update: whether the file is to be written.
        seeds: run seeds 0 ... seeds - 1; None: the grid's own, or 30 of them for an update.
    """

    def __init__(
        self,
        grid: str,
        profile: str | None,
        settings: Sequence[str],
        path: Path | None,
        update: bool,
        seeds: int | None,
    ) -> None:
        self.arguments = ["--grid", str(find_grid(grid).absolute())]
        self.arguments += ["--profile", profile] if profile else []
        self.arguments += [word for setting in settings for word in ("--set", setting)]
        self.spec = load_grid(grid, profile, settings)
        count = seeds or (UPDATE_SEEDS if update else None)
        if count:
            self.spec = self.spec.model_copy(update={"seeds": tuple(range(count))})
        if update and len(self.spec.seeds) < MIN_SEEDS:
            raise UserError(f"--update: {len(self.spec.seeds)} seeds are too few; at least {MIN_SEEDS}, better 30")
        self.path = path or SHIPPED / f"{self.spec.name}.json"
        if path is None and not self.path.is_file():
            raise UserError(f"--baseline: none is shipped for grid {self.spec.name}; name a file")
        self.update = update
        self.baseline = None if update else read_baseline(self.path, self.spec)
        self.now: Baseline | None = None

    @contextmanager
    def places(self, data: Path, results: Path | None) -> Iterator[Places]:
        """Yield where the grid runs: nothing there was made by an earlier run, not even the targets.

        An update goes on with the records that are in `results`. Raises UserError when a check would find some.
        """
        with tempfile.TemporaryDirectory() as folder:
            found = Places(data, results or Path(folder), self.spec.name, targets=Path(folder))
            if not self.update and found.records.is_dir() and any(found.records.iterdir()):
                raise UserError(f"--results {results}: {found.records} is not empty, and a check uses no earlier run")
            yield found

    @staticmethod
    def refuse(tasks: Sequence[Task]) -> None:
        """Raise UserError when data or weights of a task are not here."""
        for task in tasks:
            if isinstance(task, Missing):
                raise UserError(task.reason)

    def findings(self, outcomes: Sequence[Outcome], places: Places) -> list[Finding]:
        """Return the comparisons with the baseline."""
        assert self.baseline
        self.now = measured(self.spec, read_records(places.records)[0])
        failures: dict[Key, str] = {}
        for outcome in outcomes:
            if outcome.status != "done":
                cell = outcome.task.cell
                why = f"seed {cell.seed} {outcome.status}: {outcome.reason}"
                failures[cell.dataset, cell.arm, cell.budget] = why
        return compare(self.baseline, self.now, failures)

    def pace(self, revision: str, slower: float, words: Sequence[str]) -> list[Finding]:
        """Return the comparison of time with another revision."""
        return [measure_pace(revision, [*self.arguments, *words]).finding(slower)]

    @contextmanager
    def repeating(self, data: Path) -> Iterator[tuple[Grid, Places]]:
        """Yield what is run once more for an update, the first seeds, and where; on another number of threads.

        Threads add numbers in another order, as another CPU does.
        """
        with threads(1 if torch.get_num_threads() > 1 else 2), tempfile.TemporaryDirectory() as folder:
            few = self.spec.model_copy(update={"seeds": self.spec.seeds[:REPEATED_SEEDS]})
            yield few, Places(data, Path(folder), self.spec.name, targets=Path(folder))

    def write(self, outcomes: Sequence[Outcome], places: Places, few: Grid, again: Places) -> str:
        """Write the baseline and return a sentence on it. Raises UserError unless every cell is done."""
        for outcome in outcomes:
            if outcome.status != "done":
                raise UserError(f"--update: no baseline of a grid with a failed cell: {outcome.reason}")
        found = measured(self.spec, read_records(places.records)[0])
        write_baseline(with_repeats(found, measured(few, read_records(again.records)[0])), self.path)
        return f"{self.path}: the values of {len(found.samples)} arms over {len(found.seeds)} seeds"

    def report(self, findings: Sequence[Finding], junit: Path | None) -> None:
        """Print the comparison; then write the JUnit file and, in a GitHub job, its summary."""
        assert self.baseline
        assert self.now
        print(check_text(findings, self.baseline, self.now))
        if junit:
            write_junit(findings, self.spec.name, junit)
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            try:
                with Path(summary).open("a", encoding="utf-8") as file:
                    file.write(check_markdown(findings, self.baseline, self.now))
            except OSError as error:
                print(f"GITHUB_STEP_SUMMARY={summary}: {error.strerror}; there is no summary", file=sys.stderr)
