"""A check: a grid is run anew and compared with its baseline, or makes one."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.check.baseline import MIN_SEEDS, SHIPPED, Baseline, Key, measured, with_repeats, write_baseline
from bench.check.compare import compare
from bench.check.report import publish
from bench.core.device import threads
from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.grid.expand import expand
from bench.grid.schema import Grid
from bench.plan.graph import Ready, Task, plan
from bench.plan.state import Outcome
from bench.store.record import read_records

UPDATE_SEEDS = 30
REPEATED_SEEDS = 6


def with_seeds(grid: Grid, count: int | None, update: bool) -> Grid:
    """Return the grid with seeds 0 ... count - 1; None: its own, or 30 for an update. Raises UserError on too few."""
    if grid.tune:
        raise UserError(
            f"check: grid {grid.name} has `tune`, and what is chosen anew cannot be compared; --set tune=null"
        )
    count = count or (UPDATE_SEEDS if update else None)
    grid = grid.model_copy(update={"seeds": tuple(range(count))}) if count else grid
    if update and len(grid.seeds) < MIN_SEEDS:
        raise UserError(f"--update: {len(grid.seeds)} seeds are too few; at least {MIN_SEEDS}, better 30")
    return grid


def baseline_path(path: Path | None, grid: Grid) -> Path:
    """Return the file of the baseline, without one the one that is shipped for the grid. Raises UserError."""
    shipped = SHIPPED / f"{grid.name}.json"
    if path is None and not shipped.is_file():
        raise UserError(f"--baseline: none is shipped for grid {grid.name}; name a file")
    return path or shipped


@dataclass(frozen=True)
class Gate:
    """What runs a grid anew: nothing was made by an earlier run, not even the targets.

    Args:
        grid: what is run.
        data: the folder of datasets and priors.
        results: an empty folder for the records; None: a temporary one.
        run: runs tasks and returns what became of them.
    """

    grid: Grid
    data: Path
    results: Path | None
    run: Callable[[list[Task], Paths], list[Outcome]]

    def moved(self, baseline: Baseline, junit: Path | None) -> bool:
        """Compare the grid with its baseline, report that, and return whether anything is red.

        Raises UserError when there are results of an earlier run, or data or weights are not here.
        """
        with self._places(self.results) as paths:
            if paths.records.is_dir() and any(paths.records.iterdir()):
                here = f"--results {self.results}: {paths.records}"
                raise UserError(f"{here} is not empty, and a check uses no earlier run")
            outcomes, now = self._measured(self.grid, paths)
        failures: dict[Key, str] = {}
        for outcome in outcomes:
            if outcome.status != "done":
                cell = outcome.task.cell
                key = (cell.dataset, cell.arm, cell.budget)
                failures[key] = f"seed {cell.seed} {outcome.status}: {outcome.reason}"
        findings = compare(baseline, now, failures)
        publish(findings, baseline, now, junit)
        return any(finding.red for finding in findings)

    def update(self, path: Path) -> str:
        """Write a baseline and return a sentence on it. Raises UserError unless every cell is done.

        It goes on with the records that are in `results`. The first seeds are run once more on another number of
        threads, which add numbers in another order, as another CPU does.
        """
        few = self.grid.model_copy(update={"seeds": self.grid.seeds[:REPEATED_SEEDS]})
        with self._places(self.results) as paths, self._places(None) as elsewhere:
            outcomes, baseline = self._measured(self.grid, paths)
            with threads(1 if torch.get_num_threads() > 1 else 2):
                more, repeats = self._measured(few, elsewhere)
        for outcome in (*outcomes, *more):
            if outcome.status != "done":
                raise UserError(f"--update: no baseline of a grid with a failed cell: {outcome.reason}")
        write_baseline(with_repeats(baseline, repeats), path)
        return f"{path}: the values of {len(baseline.samples)} arms over {len(baseline.seeds)} seeds"

    @contextmanager
    def _places(self, results: Path | None) -> Iterator[Paths]:
        with tempfile.TemporaryDirectory() as folder:
            yield Paths(self.data, results or Path(folder), self.grid.name, targets=Path(folder))

    def _measured(self, grid: Grid, paths: Paths) -> tuple[Sequence[Outcome], Baseline]:
        """Run a grid. Raises UserError when data or weights are not here."""
        cells = expand(grid)
        tasks = plan(cells, cells, paths, f"grid {grid.name}")
        for task in tasks:
            if not isinstance(task, Ready):
                raise UserError(task.reason)
        outcomes = self.run(tasks, paths)
        return outcomes, measured(grid, read_records(paths.records)[0])
