"""Runs the tasks of a plan: skips the finished, leaves to others what they run, isolates failures, writes records."""

import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bench.core.device import DeviceLost, is_lost
from bench.core.distributed import any_rank, broadcast_from_rank_zero, is_rank_zero, launch, world_size
from bench.core.environment import launched
from bench.core.errors import Interrupted, TimedOut, TrainingError, UserError, WorkerDied, told
from bench.core.files import WriteError, remove_leftovers, set_aside, written
from bench.core.lock import POLL, Holder, Lock, Lost, take
from bench.core.paths import Places
from bench.measure.memory import OutOfMemory, release
from bench.measure.provenance import provenance
from bench.plan.graph import Missing, Ready, Task
from bench.plan.state import Outcome, is_done, to_run
from bench.run.events import CellLog
from bench.run.launches import DIED, ProcessError, begin, finish, given_up, lost_connection, tell_failure
from bench.run.progress import Display
from bench.store.record import Damaged, Failed, Failure, Status, read_record, record_path, write_record
from bench.train.cell import Limits, Watch, run_cell
from bench.train.checkpoint import checkpoint_path
from bench.train.loop import Every

HEARTBEAT_SECONDS = 5.0


def run_tasks(
    tasks: Sequence[Task],
    places: Places,
    device: torch.device,
    workers: int,
    display: Display,
    limits: Limits | None = None,
) -> list[Outcome]:
    """Run what is not done yet and return what became of each task.

    A failure is recorded and ends only its own cell and those that need it. What another runner on the same folder
    is at is left to it, and waited for at the end. Raises Interrupted after the running cell is saved when the user
    asks to stop, WriteError when the folder of results cannot be written, DeviceLost when no other cell can run in this
    process; what is finished stays.
    """
    with _stop_requests() as stop, display:
        display.begin(len(tasks))
        return _Runner(tasks, places, device, workers, display, limits or Limits(), stop).run()


class _Runner:
    def __init__(
        self,
        tasks: Sequence[Task],
        places: Places,
        device: torch.device,
        workers: int,
        display: Display,
        limits: Limits,
        stop: list[int],
    ) -> None:
        self.tasks, self.places, self.device, self.workers = tasks, places, device, workers
        self.display, self.limits, self.stop = display, limits, stop
        self.own = {id(task) for task in tasks}
        # All processes go by what the first one has seen.
        self.pending = broadcast_from_rank_zero({task.id for task in to_run(tasks, places)})
        ready = [task for task in tasks if isinstance(task, Ready)]
        self.backbones_needed = {task.needs.id for task in ready if task.needs and task.id in self.pending}
        self.seen = {task.id: written(self._path(task)) for task in ready}
        self.outcomes: dict[int, Outcome] = {}

    def run(self) -> list[Outcome]:
        """Run the tasks, those that others are at last."""
        left = list(self.tasks)
        while left:
            before = len(left)
            for task in tuple(left):
                if any_rank(bool(self.stop)):
                    raise Interrupted
                if outcome := self._outcome(task):
                    self._finished(outcome)
                    left.remove(task)
            if len(left) == before:
                time.sleep(POLL)
        return [self.outcomes[id(task)] for task in self.tasks]

    def _finished(self, outcome: Outcome) -> None:
        self.outcomes[id(outcome.task)] = outcome
        self.display.finished(outcome)

    def _outcome(self, task: Task) -> Outcome | None:
        """Return what became of a task; None when it has to wait for another runner."""
        if isinstance(task, Missing):
            return Outcome(task, "skipped", reason=task.reason)
        if task.id not in self.pending:
            self._tidy(task)
            return Outcome(task, "done", cached=True)
        if task.needs:
            status = self._status(task.needs, backbone_needed=not task.cell.flops_of)
            if status is None:
                return None
            if status != "done":
                return Outcome(task, "skipped", reason=f"the cell {task.needs.id} that it needs is {status}")
        lock = take(self.places.lock(task.id)) if is_rank_zero() else None
        try:
            if holder := broadcast_from_rank_zero(lock if isinstance(lock, Holder) else None):
                self.display.waits(task, holder.name)
                return None
            if found := broadcast_from_rank_zero(self._found(task)):
                status, reason = found
                return Outcome(task, status, cached=True, reason=reason, elsewhere=True)
            if why := broadcast_from_rank_zero(self._given_up(task)):
                return Outcome(task, "failed", reason=why)
            return self._run(task, lock if isinstance(lock, Lock) else None)
        except Lost:
            if world_size() > 1:
                raise ProcessError("another runner has taken over the cell") from None
            return None
        finally:
            release(self.device)
            if isinstance(lock, Lock):
                lock.release()

    def _status(self, needed: Ready, backbone_needed: bool) -> str | None:
        """Return how far a task is that another one needs, be it one of those to run or not; None: wait for it."""
        if id(needed) in self.own:
            outcome = self.outcomes.get(id(needed))
            return outcome.status if outcome else None
        return "done" if broadcast_from_rank_zero(is_done(needed, self.places, backbone_needed)) else "not done"

    def _tidy(self, task: Ready) -> None:
        """Remove the checkpoint of a finished cell, where a kill has left one."""
        checkpoint = checkpoint_path(self.places, task.id)
        if is_rank_zero() and checkpoint.is_file() and isinstance(lock := take(self.places.lock(task.id)), Lock):
            with lock:
                checkpoint.unlink(missing_ok=True)

    def _found(self, task: Ready) -> tuple[Status, str] | None:
        """Return what another runner has recorded of a task since this one began."""
        path = self._path(task)
        if is_done(task, self.places, backbone_needed=task.id in self.backbones_needed):
            if is_rank_zero():
                checkpoint_path(self.places, task.id).unlink(missing_ok=True)
            return "done", ""
        record = read_record(path)
        if isinstance(record, Failed) and written(path) != self.seen[task.id]:
            return record.status, record.error
        return None

    def _run(self, task: Ready, lock: Lock | None) -> Outcome:
        work, path = self.places.work(task.id), self._path(task)
        checkpoint = checkpoint_path(self.places, task.id)
        log = CellLog(work)
        heartbeat = Every(HEARTBEAT_SECONDS)

        def event(name: str, facts: dict[str, Any]) -> None:
            if is_rank_zero():
                log.event(name, facts)
                self.display.event(task, name, facts)

        def step(done: int, steps: int, loss: float) -> None:
            self.display.step(task, done, steps, loss)
            if is_rank_zero() and heartbeat():
                log.beat(done, steps)
                own()

        def own() -> None:
            if lock:
                lock.check()

        self.display.started(task)
        begin(work)
        if is_rank_zero():
            remove_leftovers(path)
            remove_leftovers(checkpoint)
            if isinstance(damaged := read_record(path), Damaged) and path.is_file():
                set_aside(path, damaged.reason)
        watch = Watch(step=step, event=event, stop=lambda: bool(self.stop), own=own)
        try:
            record = run_cell(task, self.places, self.device, self.workers, watch, self.limits)
            if is_rank_zero():
                own()
                write_record(record, self.places.records)
                checkpoint.unlink(missing_ok=True)
                finish(work)
                event("done", {})
            return Outcome(task, "done")
        except (Interrupted, Lost, WriteError) as error:
            event("interrupted", {"why": str(error)} if str(error) else {})
            raise
        except (Exception, SystemExit) as error:  # a plugin may raise anything, and the other cells must go on
            if self.stop and not isinstance(error, UserError | TrainingError | TimedOut):
                # A signal to all processes of a group may end those that decode in their first moments.
                event("interrupted", {"why": _judged(error)[1]})
                raise Interrupted from error
            status, reason = _judged(error)
            if is_rank_zero():
                log.text(traceback.format_exc())
            if isinstance(error, TrainingError):  # so is what the checkpoint holds, maybe
                checkpoint.unlink(missing_ok=True)
        if is_rank_zero():
            own()
            self._write_failure(task, status, reason)
            event(status, {"reason": reason})
        else:
            tell_failure(work, reason)
        if (
            world_size() > 1
        ):  # the others may be anywhere in the cell; `torchrun --max-restarts` goes on with the next one
            raise ProcessError(reason)
        if status != "oom" and is_lost(self.device):
            raise DeviceLost(reason)
        return Outcome(task, status, reason=reason)

    def _write_failure(self, task: Ready, status: Failure, reason: str) -> None:
        failed = Failed(
            id=task.id,
            grid=self.places.grid,
            status=status,
            cell=task.cell,
            inputs=task.inputs,
            dataset_title=self.places.mark + task.title,
            error=reason,
            provenance=provenance(self.device) | ({"launch": name} if (name := launch()) else {}),
            rehearsal=self.places.rehearsal,
        )
        write_record(failed, self.places.records)

    def _given_up(self, task: Ready) -> str | None:
        record = read_record(self._path(task))
        reason = given_up(self.places.work(task.id), record)
        if reason and is_rank_zero() and not (isinstance(record, Failed) and record.error == reason):
            self._write_failure(task, "failed", reason)
        return reason

    def _path(self, task: Ready) -> Path:
        return record_path(self.places.records, task.id)


def _judged(error: BaseException) -> tuple[Failure, str]:
    """Return the status of a cell that an error has ended, and one sentence on it."""
    if isinstance(error, UserError | TrainingError | WorkerDied):
        return "failed", str(error)
    if isinstance(error, TimedOut):
        return "timeout", str(error)
    if isinstance(error, OutOfMemory):
        return "oom", str(error)
    text = told(error)
    return "failed", DIED if lost_connection(text) else text


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Yield a list that the first SIGINT or SIGTERM fills; the second one of them acts as usual.

    Beside other processes of the same command it does nothing more: the one that started them ends them.
    """
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for each, handler in before.items() if not launched() else ():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
