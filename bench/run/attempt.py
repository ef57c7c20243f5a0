"""One cell trained in this process, and what an error that ends it means."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from bench.core.device import is_lost
from bench.core.errors import (
    Interrupted,
    Lost,
    OutOfMemory,
    TimedOut,
    TrainingError,
    UserError,
    WorkerDied,
    WriteError,
    describe_error,
)
from bench.core.lock import Lock
from bench.core.paths import Paths
from bench.core.throttle import Throttle
from bench.measure.memory import release
from bench.plan.graph import Ready
from bench.run.events import CellLog
from bench.run.progress import Display
from bench.run.tracking import Tracked
from bench.store.record import Failure, Finished
from bench.train.cell import run_cell
from bench.train.checkpoint import checkpoint_path
from bench.train.keeper import Hooks, Limits

HEARTBEAT_SECONDS = 5.0


@dataclass(frozen=True)
class Trouble:
    """Why a cell has no result; `device_lost` tells that no other cell can run in this process."""

    status: Failure
    reason: str
    device_lost: bool = False


class Trains(Protocol):
    """A way to train a cell whose lock this runner has."""

    def __call__(self, task: Ready, lock: Lock, stop: Callable[[], bool]) -> Finished | Trouble:
        """Return the cell's record, or why it has none.

        Raises Interrupted once the cell is saved when `stop()` says so, Lost when another runner has taken over, and
        WriteError when a folder cannot be written.
        """


@dataclass(frozen=True)
class Here:
    """Trains cells in this process."""

    paths: Paths
    device: torch.device
    workers: int
    limits: Limits
    display: Display
    track: str | None = None

    def __call__(self, task: Ready, lock: Lock, stop: Callable[[], bool]) -> Finished | Trouble:
        """Return the cell's record, or why it has none."""
        log = CellLog(self.paths.work(task.id))
        watch = logged(task, log, lock.check, stop, self.display)
        try:
            return attempt(task, self.paths, self.device, self.workers, watch, self.limits, self.track)
        finally:
            release(self.device)


def logged(
    task: Ready, log: CellLog, own: Callable[[], None], stop: Callable[[], bool], display: Display | None = None
) -> Hooks:
    """Return hooks that keep a cell's log, show what happens, and keep its lock by `own`."""
    due = Throttle(HEARTBEAT_SECONDS)

    def event(name: str, facts: dict[str, Any]) -> None:
        log.event(name, facts)
        if display:
            display.event(task, name, facts)

    def step(done: int, steps: int, loss: float) -> None:
        if display:
            display.step(task, done, steps, loss)
        if due():
            log.beat(done, steps, loss)
            own()

    return Hooks(step=step, event=event, stop=stop, own=own)


def attempt(
    task: Ready,
    paths: Paths,
    device: torch.device,
    workers: int,
    watch: Hooks,
    limits: Limits,
    track: str | None = None,
) -> Finished | Trouble:
    """Run a cell and return its record, or why it has none, once its log has the traceback; `track` names a tracker.

    Raises Interrupted, Lost and WriteError.
    """
    if not track:
        return _attempt(task, paths, device, workers, watch, limits)
    tracked = Tracked(track, task, paths, lambda why: watch.event("untracked", {"why": why}))
    status = "interrupted"
    try:
        result = _attempt(task, paths, device, workers, replace(watch, track=tracked.put), limits)
        status = result.status
        return result
    finally:
        tracked.close(status)


def _attempt(
    task: Ready, paths: Paths, device: torch.device, workers: int, watch: Hooks, limits: Limits
) -> Finished | Trouble:
    try:
        return run_cell(task, paths, device, workers, watch, limits)
    except (Interrupted, Lost, WriteError):
        raise
    except (Exception, SystemExit) as error:  # a plugin may raise anything, and the other cells must go on
        status, reason = judged(error)
        if watch.stop() and not isinstance(error, UserError | TrainingError | TimedOut):
            # A signal to all processes of a group may end those that decode in their first moments.
            raise Interrupted(reason) from error
        CellLog(paths.work(task.id)).text(traceback.format_exc())
        if isinstance(error, TrainingError):  # what the checkpoint holds may be no number either
            checkpoint_path(paths, task.id).unlink(missing_ok=True)
    return Trouble(status, reason, device_lost=status != "oom" and is_lost(device))


def judged(error: BaseException) -> tuple[Failure, str]:
    """Return the status of a cell that an error has ended, and one sentence on it."""
    if isinstance(error, UserError | TrainingError | WorkerDied):
        return "failed", str(error)
    if isinstance(error, TimedOut):
        return "timeout", str(error)
    if isinstance(error, OutOfMemory):
        return "oom", str(error)
    return "failed", describe_error(error)
