"""What a run shows while it runs: bars on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from bench.core.errors import UserError
from bench.core.terminal import shortened
from bench.core.throttle import Throttle
from bench.data import find_dataset
from bench.data.sampler import total_steps
from bench.plan.estimate import duration
from bench.plan.graph import Ready, Task
from bench.plan.state import Outcome

NAME = 24  # characters of a cell's name on a terminal
REFRESH = 0.1  # seconds between two changes of a bar


class Pace:
    """How fast a count rises since it was first seen."""

    def __init__(self) -> None:
        self.began: tuple[float, float] | None = None
        self.rate = 0.0  # a second

    def at(self, done: float) -> None:
        """Note how far the count is."""
        now = time.monotonic()
        began, first = self.began = self.began or (now, done)
        self.rate = (done - first) / (now - began) if now > began else 0.0

    def left(self, amount: float) -> str:
        """Return how long an amount takes; "" when it is too early to say."""
        return f"about {duration(max(1, amount / self.rate))} left" if self.rate and amount > 0 else ""


class _Running:
    """A running cell: its pace, step and scores, and the line that shows it; `work` is what it takes in all."""

    def __init__(self, work: float, bar: TaskID | None) -> None:
        self.work, self.bar = work, bar
        self.pace = Pace()
        self.done = self.steps = self.first = 0
        self.scores = ""

    def step(self, done: int, steps: int) -> None:
        """Note a step; what was done before the first one was not done by this run."""
        self.first = self.first if self.steps else done - 1
        self.done, self.steps = done, steps
        self.pace.at(done)

    @property
    def before(self) -> float:
        """The work that an earlier run has done."""
        return self.work * self.first / self.steps if self.steps else 0.0

    @property
    def spent(self) -> float:
        """The work that this run has done."""
        return self.work * (self.done - self.first) / self.steps if self.steps else 0.0

    @property
    def rate(self) -> str:
        """How fast it is, and how long it takes; "" when it is too early to say."""
        if not self.pace.rate:
            return ""
        return ", ".join(filter(None, [f"{self.pace.rate:.3g} steps/s", self.pace.left(self.steps - self.done)]))


def _work(task: Ready) -> float:
    """Return a measure of what a cell takes, to weigh it against others: the pixels that it is trained on."""
    with suppress(UserError):
        protocol = task.cell.protocol
        size = protocol.input_size or find_dataset(task.cell.dataset, Path()).image_size or 1
        return float(total_steps(task.cell, task.train_images) * protocol.batch_size * size**2)
    return 0.0


class Display:
    """Shows cells done, and each running cell's step, rate and time left; `mark` begins the name of each cell.

    `several`: more than one cell runs at a time, so that each line names its own. `quiet`: another process shows it.
    """

    def __init__(self, mark: str = "", several: bool = False, quiet: bool = False) -> None:
        self.mark, self.several = mark, several
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True, quiet=quiet)
        self.bars: Progress | None = None
        if self.console.is_terminal and not quiet:
            said = TextColumn("{task.fields[said]}")
            self.bars = Progress(TextColumn("{task.description}"), BarColumn(bar_width=8), said, console=self.console)
        self.cells = self.cells_done = 0
        self.running: dict[str, _Running] = {}
        self.waited: set[str] = set()
        self.pace, self.todo, self.spent = Pace(), 0.0, 0.0  # of the grid: pixels that are left, and that were done
        self.work: dict[str, float] = {}
        self.due = Throttle(REFRESH)

    def __enter__(self) -> "Display":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars:
            self.bars.stop()

    def begin(self, tasks: Sequence[Task], pending: Collection[str], trained: Collection[str] = ()) -> None:
        """Say how many cells there are.

        `pending` are the ids of those that have something to compute. Of those among them that are `trained`, and lack
        evaluations, one takes as long as another.
        """
        self.cells = len(tasks)
        ready = [task for task in tasks if isinstance(task, Ready) and task.id in pending]
        self.work = {task.id: 1.0 if task.id in trained else _work(task) for task in ready}
        self.todo = sum(self.work.values())
        self.pace.at(0)
        if self.bars:
            self.grid_bar = self.bars.add_task("cells", total=self.cells, said=f"0/{self.cells}")

    def started(self, task: Ready) -> None:
        """Show that a cell begins."""
        self._forget(task)
        name = shortened(f"{self.mark}{task.cell}", NAME)
        bar = self.bars.add_task(name, total=None, said="") if self.bars else None
        self.running[task.id] = _Running(self.work.get(task.id, 0.0), bar)

    def step(self, task: Ready, done: int, steps: int, loss: float) -> None:
        """Show a running cell's step, rate and time left, and that of the grid."""
        if not (cell := self.running.get(task.id)):
            return
        cell.step(done, steps)
        if self.bars and cell.bar is not None and self.due():
            said = ", ".join(filter(None, [f"{done:,}/{steps:,}", cell.rate]))
            self.bars.update(cell.bar, completed=done, total=steps, said=said)
            self._show_grid()

    def _show_grid(self) -> None:
        if self.bars:
            said = ", ".join(filter(None, [f"{self.cells_done}/{self.cells}", self._left()]))
            self.bars.update(self.grid_bar, completed=self.cells_done, said=said)

    def _left(self) -> str:
        """Return how long the grid takes yet, at the pace of this run; "" when it is too early to say."""
        spent, before = (sum(getattr(cell, name) for cell in self.running.values()) for name in ("spent", "before"))
        self.pace.at(self.spent + spent)
        return self.pace.left(self.todo - spent - before)

    def event(self, task: Ready, name: str, facts: dict[str, Any]) -> None:
        """Show what happened in a running cell."""
        whose = f"{task.cell}: " if self.several else ""
        if name == "resume":
            self.say(f"  {whose}resumes at step {facts['step']:,} of {facts['steps']:,}")
        if name == "untracked":
            self.say(f"  {whose}tracked no more: {facts['why']}")
        if name == "evaluated":
            self.say(f"  {whose}{facts['name']}: {facts['found']}")
        if name == "unevaluated":
            self.say(f"  {whose}not evaluated by {facts['name']}: {facts['why']}")
        if name == "evaluation" and (cell := self.running.get(task.id)):
            score = facts["score"]
            linear = sum(score["linear"]) / len(score["linear"])
            cell.scores = f"linear {linear:.1%}, kNN {score['knn']:.1%}"
            if not self.bars:
                rate = f"; {cell.rate}" if cell.rate else ""
                self.say(f"  {whose}step {facts['step']:,}: loss {facts['loss']:.3f}, {cell.scores}{rate}")

    def heard(self, task: Ready, event: dict[str, Any]) -> None:
        """Show what the log of a cell says that runs in another process. Raises what a malformed line causes."""
        if event["event"] == "step":
            self.step(task, event["step"], event["steps"], event.get("loss", math.nan))
        else:
            self.event(task, event["event"], event)

    def waits(self, task: Ready, holder: str) -> None:
        """Say, once for each cell, that another runner has it."""
        if task.id not in self.waited:
            self.waited.add(task.id)
            self.say(f"  {self.mark}{task.cell}: {holder} runs it; checked again later")

    def finished(self, outcome: Outcome) -> None:
        """Show what became of a cell; what cells lack is said once, at the end."""
        self.cells_done += 1
        if not isinstance(outcome.task, Ready):
            return
        by = " by another runner" if outcome.elsewhere else " before" if outcome.cached else ""
        cell = self.running.get(outcome.task.id)
        score = f", {cell.scores}" if cell and cell.scores else ""
        # Why a cell is skipped is said once, at the end: it is mostly the same for many.
        reason = f": {outcome.reason}" if outcome.reason and outcome.status != "skipped" else ""
        self._forget(outcome.task)
        work = self.work.pop(outcome.task.id, 0.0)
        self.todo -= work
        self.spent += work - cell.before if cell else 0.0
        left = self._left() if cell else ""
        name = f"[{self.cells_done}/{self.cells}] {self.mark}{outcome.task.cell}"
        self.say(f"{name}: {outcome.status}{by}{score}{reason}{f' ({left})' if left else ''}")
        self._show_grid()

    def say(self, line: str) -> None:
        """Show a line."""
        self.console.print(line, markup=False)

    def _forget(self, task: Ready) -> None:
        cell = self.running.pop(task.id, None)
        if self.bars and cell and cell.bar is not None:
            self.bars.remove_task(cell.bar)
