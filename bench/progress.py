"""What a run shows while it runs: bars on a terminal, plain lines elsewhere."""

import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.distributed import is_first
from bench.spec import Cell


def describe(cell: Cell) -> str:
    """Return a cell's name for people: dataset, arm, budget, seed."""
    return f"{cell.dataset} {cell.arm} {cell.budget:.0%} seed {cell.seed}"


class Display:
    """Shows cells done, and the running cell's step, loss and time left; `mark` begins the name of each cell.

    Silent where it is not the first of several processes.
    """

    def __init__(self, mark: str = "") -> None:
        self.mark = mark
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True, quiet=not is_first())
        self.bars: Progress | None = None
        if self.console.is_terminal and is_first():
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
        self.cells = self.cells_done = 0
        self.score = ""
        self.waited: set[str] = set()

    def __enter__(self) -> "Display":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars:
            self.bars.stop()

    def begin(self, cells: int) -> None:
        """Say how many cells there are."""
        self.cells = cells
        if self.bars:
            self.grid_bar = self.bars.add_task("cells", total=cells, loss="")
            self.cell_bar = self.bars.add_task("", total=None, loss="", visible=False)

    def started(self, cell: Cell) -> None:
        """Show that a cell begins."""
        self.score = ""
        if self.bars:
            self.bars.reset(self.cell_bar, description=self.mark + describe(cell), visible=True, loss="")

    def step(self, done: int, steps: int, loss: float) -> None:
        """Show the running cell's step; the loss is the last that was looked at."""
        if self.bars:
            self.bars.update(
                self.cell_bar, completed=done, total=steps, loss="" if loss != loss else f"loss {loss:.3f}"
            )

    def event(self, cell: Cell, name: str, facts: dict[str, Any]) -> None:
        """Show what happened in the running cell."""
        if name == "resume":
            self.console.print(f"  goes on at step {facts['step']:,} of {facts['steps']:,}", markup=False)
        if name == "evaluation":
            score = facts["score"]
            linear = sum(score["linear"]) / len(score["linear"])
            self.score = f"linear {linear:.1%}, kNN {score['knn']:.1%}"
            if not self.bars:
                self.console.print(f"  step {facts['step']:,}: loss {facts['loss']:.3f}, {self.score}", markup=False)

    def waits(self, cell: Cell, holder: str) -> None:
        """Say, once for each cell, that another runner has it."""
        if cell.key() not in self.waited:
            self.waited.add(cell.key())
            self.console.print(f"  {self.mark}{describe(cell)}: {holder} runs it, to be looked at again", markup=False)

    def finished(self, cell: Cell, status: str, reason: str) -> None:
        """Show what became of a cell."""
        self.cells_done += 1
        result = f"{status}, {self.score}" if self.score else status
        line = (
            f"[{self.cells_done}/{self.cells}] {self.mark}{describe(cell)}: {result}{f': {reason}' if reason else ''}"
        )
        self.console.print(line, markup=False)
        if self.bars:
            self.bars.update(self.grid_bar, completed=self.cells_done)
            self.bars.update(self.cell_bar, visible=False)
        self.score = ""
