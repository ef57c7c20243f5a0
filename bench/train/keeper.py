"""What keeps a running cell: its checkpoint, the user's wish to stop, its limit of time, and whoever runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.core.distributed import any_rank, is_rank_zero
from bench.core.errors import Interrupted, TimedOut
from bench.core.files import set_aside
from bench.core.paths import Paths
from bench.core.throttle import Throttle
from bench.measure.clock import Clock
from bench.measure.memory import peak_memory
from bench.plan.graph import Ready
from bench.plan.stale import code_of
from bench.store.record import Point, score_linear
from bench.train.checkpoint import Checkpoint, checkpoint_path, load_checkpoint, save_checkpoint
from bench.train.loop import Trainer

LOOK_SECONDS = 5.0  # between two looks at what else is on the machine


@dataclass(frozen=True)
class Hooks:
    """Hooks between a cell and its runner.

    Args:
        step: called with (step, steps, loss) after each step.
        event: called with an event's name and facts: the log of the cell.
        stop: tells whether the user wants to stop.
        own: called before each write; raises if another runner has taken over the cell.
        track: called with a step and what is known after it (`Keeper.note`); again for what an earlier run has passed.
    """

    step: Callable[[int, int, float], None]
    event: Callable[[str, dict[str, Any]], None]
    stop: Callable[[], bool]
    own: Callable[[], None] = lambda: None
    track: Callable[[int, dict[str, float]], None] = lambda step, values: None


@dataclass(frozen=True)
class Limits:
    """Seconds between two checkpoints, and a cell's time limit in seconds, over all its runs; None: no limit."""

    checkpoint_seconds: float = 60.0
    cell_seconds: float | None = None


class Keeper:
    """Keeps the checkpoint of a running cell, and ends the run when the user wants that or its time is over.

    From an earlier run it takes the curve, the values that were tracked, the trainer's state, which whoever has
    restored that sets to None, which code it had, and what was spent, which it adds to the clock.
    """

    def __init__(self, task: Ready, paths: Paths, clock: Clock, hooks: Hooks, limits: Limits) -> None:
        self.task, self.clock, self.hooks, self.limits = task, clock, hooks, limits
        self.path = checkpoint_path(paths, task.id)
        saved = load_checkpoint(self.path, task.id)
        self.curve: list[Point] = list(saved.curve) if saved else []
        self.values: list[tuple[int, dict[str, float]]] = list(saved.values) if saved else []
        self.state = saved.trainer if saved else None
        self.code = saved.code if saved else code_of(task.cell)
        self._peak = saved.peak if saved else None
        if saved:
            clock.add(saved.seconds, saved.wall, saved.joules, saved.side_by_side, saved.taken)
        self._look_due = Throttle(LOOK_SECONDS)

    def discard(self, why: str) -> None:
        """Set the checkpoint aside as stale, and begin anew."""
        if is_rank_zero():
            set_aside(self.path, why, "stale")
        self.curve.clear()
        self.values.clear()
        self.state = self._peak = None
        self.code = code_of(self.task.cell)
        self.clock.forget()

    def note(self, trainer: Trainer, point: Point | None = None) -> None:
        """Pass on loss, learning rate and what training has spent, after an evaluation the accuracies and joules too.

        They are kept as well: a kill may come after a checkpoint, but before a tracker has shown them.
        """
        seconds, flops = self.clock.seconds("train"), float(trainer.spent.flops)
        values = {"loss": trainer.loss, "lr": trainer.lr, "seconds": seconds, "flops": flops}
        if point:
            values |= {"linear": score_linear(point.score), "knn": point.score.knn}
            values |= {} if point.joules is None else {"joules": point.joules}
        self.values.append((trainer.step, values))
        self.hooks.track(trainer.step, values)

    def check(self, doing: str, trainer: Trainer | None = None) -> None:
        """Save, and raise Interrupted when the user wants to stop, TimedOut when the cell has had its time.

        All processes ask at the same time once the trainer is there; before, the first one is alone.
        """
        if self._look_due():
            self.clock.look()
        stop, limit = self.hooks.stop(), self.limits.cell_seconds
        late = limit is not None and self.clock.wall > limit
        if trainer:
            stop, late = any_rank(stop), any_rank(late)
        if stop or late:
            self.save(trainer)
        if stop:
            raise Interrupted
        if late:
            spent = f"{self.clock.wall:,.0f} s spent, {limit:,g} s allowed"
            raise TimedOut(f"{spent}, {doing}; with a longer limit it resumes there")

    def save(self, trainer: Trainer | None = None) -> None:
        """Write where the cell stands; before there is a trainer, its state of the earlier run."""
        if not is_rank_zero():
            return
        self.hooks.own()
        clock = self.clock
        with clock.phase("other"):
            state = trainer.state() if trainer else self.state
            here = Checkpoint(
                clock.read(),
                clock.joules(),
                clock.wall,
                self.peak(),
                tuple(self.curve),
                state,
                clock.side_by_side,
                clock.taken(),
                tuple(self.values),
                self.code,
            )
            save_checkpoint(self.path, self.task.id, here)
        self.hooks.event("checkpoint", {"step": state["step"] if state else 0})

    def peak(self) -> int | None:
        """Return the peak of memory in all runs of the cell, where it is known."""
        now, earlier = peak_memory(self.clock.device), self._peak
        return now if now is None or earlier is None else max(now, earlier)
