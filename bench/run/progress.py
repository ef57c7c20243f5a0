"""What a run shows while it runs: bars on a terminal, plain lines elsewhere."""

import math
import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench.grid.cell import Cell
from bench.plan.graph import Ready
from bench.plan.state import Outcome


def describe(cell: Cell) -> str:
    """Return a cell's name for people: dataset, arm, budget, seed."""
    return f"{cell.dataset} {cell.arm} {cell.budget:.0%} seed {cell.seed}"


class Display:
    """Shows cells done, and each running cell's step, loss and time left; `mark` begins the name of each cell.

    `several`: more than one cell runs at a time, so that each line names its own. `quiet`: another process shows it.
    """

    def __init__(self, mark: str = "", several: bool = False, quiet: bool = False) -> None:
        self.mark, self.several = mark, several
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True, quiet=quiet)
        self.bars: Progress | None = None
        if self.console.is_terminal and not quiet:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
        self.cells = self.cells_done = 0
        self.cell_bars: dict[str, TaskID] = {}
        self.scores: dict[str, str] = {}
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

    def started(self, task: Ready) -> None:
        """Show that a cell begins."""
        self._forget(task)
        if self.bars:
            name = self.mark + describe(task.cell)
            self.cell_bars[task.id] = self.bars.add_task(name, total=None, loss="")

    def step(self, task: Ready, done: int, steps: int, loss: float) -> None:
        """Show a running cell's step; the loss is the last that was looked at."""
        if self.bars and task.id in self.cell_bars:
            said = "" if loss != loss else f"loss {loss:.3f}"
            self.bars.update(self.cell_bars[task.id], completed=done, total=steps, loss=said)

    def event(self, task: Ready, name: str, facts: dict[str, Any]) -> None:
        """Show what happened in a running cell."""
        whose = f"{describe(task.cell)}: " if self.several else ""
        if name == "resume":
            self.say(f"  {whose}goes on at step {facts['step']:,} of {facts['steps']:,}")
        if name == "company":
            self.say(f"  {whose}{facts['cells']} cells shared the device: this cell's seconds will not be charged")
        if name == "evaluation":
            score = facts["score"]
            linear = sum(score["linear"]) / len(score["linear"])
            self.scores[task.id] = f"linear {linear:.1%}, kNN {score['knn']:.1%}"
            if not self.bars:
                self.say(f"  {whose}step {facts['step']:,}: loss {facts['loss']:.3f}, {self.scores[task.id]}")

    def heard(self, task: Ready, event: dict[str, Any]) -> None:
        """Show what the log of a cell says that runs in another process. Raises what lines of another hand cause."""
        if event["event"] == "step":
            self.step(task, event["step"], event["steps"], event.get("loss", math.nan))
        else:
            self.event(task, event["event"], event)

    def waits(self, task: Ready, holder: str) -> None:
        """Say, once for each cell, that another runner has it."""
        if task.id not in self.waited:
            self.waited.add(task.id)
            self.say(f"  {self.mark}{describe(task.cell)}: {holder} runs it; checked again later")

    def finished(self, outcome: Outcome) -> None:
        """Show what became of a cell."""
        self.cells_done += 1
        by = " by another runner" if outcome.elsewhere else " before" if outcome.cached else ""
        score = self.scores.get(outcome.task.id) if isinstance(outcome.task, Ready) else None
        # Why a cell is skipped is said once, at the end: it is mostly the same for many.
        reason = "" if outcome.status == "skipped" else outcome.reason
        self.say(
            f"[{self.cells_done}/{self.cells}] {self.mark}{describe(outcome.task.cell)}: {outcome.status}{by}"
            f"{f', {score}' if score else ''}{f': {reason}' if reason else ''}"
        )
        if isinstance(outcome.task, Ready):
            self._forget(outcome.task)
        if self.bars:
            self.bars.update(self.grid_bar, completed=self.cells_done)

    def say(self, line: str) -> None:
        """Show a line."""
        self.console.print(line, markup=False)

    def _forget(self, task: Ready) -> None:
        self.scores.pop(task.id, None)
        if self.bars and task.id in self.cell_bars:
            self.bars.remove_task(self.cell_bars.pop(task.id))
