"""Runs the tasks of a plan: skips the finished, leaves to others what they run, isolates failures, writes records."""

import socket
import time
from collections.abc import Callable, Sequence
from os import getpid
from pathlib import Path
from typing import Any

import torch

from bench.core.environment import launched
from bench.core.errors import DeviceLost, Interrupted, Lost, WriteError
from bench.core.files import remove_leftovers, set_aside, written
from bench.core.lock import POLL, Holder, Lock, take
from bench.core.paths import Paths
from bench.grid.evaluation import Evaluation
from bench.measure.provenance import provenance
from bench.plan.graph import Ready, Task
from bench.plan.state import Outcome, is_done, to_evaluate, to_run
from bench.run.attempt import Here, Trains, Trouble
from bench.run.evaluating import evaluate
from bench.run.events import FAILURES, CellLog, last_attempt
from bench.run.progress import Display
from bench.run.stop import stop_requests
from bench.store.reading import Damaged
from bench.store.record import Failed, Finished, read_record, record_path, write_record
from bench.train.checkpoint import checkpoint_path
from bench.train.keeper import Limits

KILLED = "the process that ran it died; the next run resumes from the last checkpoint"


def run_tasks(
    tasks: Sequence[Task],
    paths: Paths,
    device: torch.device,
    workers: int,
    display: Display,
    limits: Limits | None = None,
    trains: Trains | None = None,
) -> list[Outcome]:
    """Run what is not done yet and return what became of each task; `trains` trains a cell, else this process does.

    A failure is recorded and ends only its own cell and those that need it. Cells that another runner on the same
    folder runs are left to it; at the end, this one waits for them. Raises Interrupted after the running cell is saved
    when the user asks to stop, WriteError when the folder of results cannot be written, DeviceLost when no other cell
    can run in this process; what is finished stays.
    """
    trains = trains or Here(paths, device, workers, limits or Limits(), display)
    with stop_requests() as stop, display:
        return _Runner(tasks, paths, device, workers, display, trains, stop).run()


class _Runner:
    def __init__(
        self,
        tasks: Sequence[Task],
        paths: Paths,
        device: torch.device,
        workers: int,
        display: Display,
        trains: Trains,
        stop: Callable[[], bool],
    ) -> None:
        self.tasks, self.paths, self.device, self.workers = tasks, paths, device, workers
        self.display, self.trains, self.stop = display, trains, stop
        self.own = {id(task) for task in tasks}
        self.pending = {task.id for task in to_run(tasks, paths)}
        ready = [task for task in tasks if isinstance(task, Ready)]
        self.backbones_needed = {task.needs.id for task in ready if task.needs and task.id in self.pending}
        self.seen = {task.id: written(self._path(task)) for task in ready}
        self.outcomes: dict[int, Outcome] = {}

    def run(self) -> list[Outcome]:
        """Run the tasks, those that others are at last."""
        self.display.begin(self.tasks, self.pending)
        left = list(self.tasks)
        while left:
            before = len(left)
            for task in tuple(left):
                if self.stop():
                    raise Interrupted
                if outcome := self._outcome(task):
                    self.outcomes[id(task)] = outcome
                    self.display.finished(outcome)
                    left.remove(task)
            if len(left) == before:
                time.sleep(POLL)
        return [self.outcomes[id(task)] for task in self.tasks]

    def _outcome(self, task: Task) -> Outcome | None:
        """Return what became of a task, or None if it has to wait for another runner."""
        if not isinstance(task, Ready):
            return Outcome(task, "skipped", reason=task.reason)
        trained = task.id not in self.pending
        if trained and not to_evaluate(task, self.paths):
            self._tidy(task)
            return Outcome(task, "done", cached=True)
        if task.needs and not trained:
            status = self._status(task.needs, backbone_needed=not task.cell.matches)
            if status is None:
                return None
            if status != "done":
                return Outcome(task, "skipped", reason=f"the cell {task.needs.id} that it needs is {status}")
        lock = take(self.paths.lock(task.id))
        if isinstance(lock, Holder):
            self.display.waits(task, lock.name)
            return None
        with lock:
            try:
                return self._trained(task, lock) or self._given_up(task) or self._run(task, lock)
            except Lost:
                return None

    def _status(self, needed: Ready, backbone_needed: bool) -> str | None:
        """Return the status of a task that another one needs, or None to wait for it."""
        if id(needed) in self.own:
            outcome = self.outcomes.get(id(needed))
            return outcome.status if outcome else None
        return "done" if is_done(needed, self.paths, backbone_needed) else "not done"

    def _tidy(self, task: Ready) -> None:
        """Remove the checkpoint of a finished cell, where a kill has left one."""
        checkpoint = checkpoint_path(self.paths, task.id)
        if checkpoint.is_file() and isinstance(lock := take(self.paths.lock(task.id)), Lock):
            with lock:
                checkpoint.unlink(missing_ok=True)

    def _trained(self, task: Ready, lock: Lock) -> Outcome | None:
        """Return what is recorded of a task that needs no training, once it is evaluated; else None."""
        path = self._path(task)
        if is_done(task, self.paths, backbone_needed=task.id in self.backbones_needed):
            checkpoint_path(self.paths, task.id).unlink(missing_ok=True)
            if asked := to_evaluate(task, self.paths):
                log = self._taken(task)
                self._evaluate(task, asked, lock, log)
                log.event("done", {})
            return Outcome(task, "done", cached=True, elsewhere=task.id in self.pending)
        record = read_record(path)
        if isinstance(record, Failed) and written(path) != self.seen[task.id]:
            return Outcome(task, record.status, cached=True, reason=record.error, elsewhere=True)
        return None

    def _given_up(self, task: Ready) -> Outcome | None:
        """Return how a cell ended that another process of the same command has begun: it is not tried again.

        None: it was not begun, or it was saved. This runner has the cell's lock, so that no other process runs it.
        """
        taken, end = last_attempt(self.paths.work(task.id))
        if not launched() or taken.get("launch") != launched() or end in {"done", "interrupted"}:
            return None
        record = read_record(self._path(task))
        if end in FAILURES and isinstance(record, Failed):
            return Outcome(task, record.status, reason=record.error)
        self._record(task, Trouble("failed", KILLED))
        return Outcome(task, "failed", reason=KILLED)

    def _taken(self, task: Ready) -> CellLog:
        """Say that this runner has taken a cell, and return the cell's log."""
        log = CellLog(self.paths.work(task.id))
        launch = {"launch": name} if (name := launched()) else {}
        log.event("taken", {"by": f"{socket.gethostname()}:{getpid()}", **launch})
        self.display.started(task)
        return log

    def _evaluate(self, task: Ready, asked: Sequence[Evaluation], lock: Lock, log: CellLog) -> None:
        """Make further evaluations of a finished cell. Raises Interrupted, Lost, WriteError."""

        def check() -> None:
            lock.check()
            if self.stop():
                raise Interrupted

        def tell(name: str, facts: dict[str, Any]) -> None:
            log.event(name, facts)
            self.display.event(task, name, facts)

        evaluate(task, asked, self.paths, self.device, self.workers, check, tell)

    def _run(self, task: Ready, lock: Lock) -> Outcome:
        log = self._taken(task)
        self._clear(task)
        try:
            result = self.trains(task, lock, self.stop)
            lock.check()
            if isinstance(result, Trouble):
                self._record(task, result)
            else:
                write_record(result, self.paths.records)
                checkpoint_path(self.paths, task.id).unlink(missing_ok=True)
                self._evaluate(task, to_evaluate(task, self.paths), lock, log)
                log.event("done", {})
        except (Interrupted, Lost, WriteError) as error:
            log.event("interrupted", {"why": str(error)} if str(error) else {})
            raise
        if isinstance(result, Finished):
            return Outcome(task, "done")
        if result.device_lost:
            raise DeviceLost(result.reason)
        return Outcome(task, result.status, reason=result.reason)

    def _clear(self, task: Ready) -> None:
        """Remove what kills have left of the files that a cell writes, and set a damaged record aside."""
        path = self._path(task)
        remove_leftovers(path)
        remove_leftovers(checkpoint_path(self.paths, task.id))
        if path.is_file() and isinstance(damaged := read_record(path), Damaged):
            set_aside(path, damaged.reason)

    def _record(self, task: Ready, trouble: Trouble) -> None:
        """Write why a task has no result."""
        failed = Failed(
            id=task.id,
            grid=self.paths.grid,
            status=trouble.status,
            cell=task.cell,
            inputs=task.inputs,
            dataset_title=self.paths.mark + task.title,
            error=trouble.reason,
            provenance=provenance(self.device),
            rehearsal=self.paths.rehearsal,
        )
        write_record(failed, self.paths.records)
        CellLog(self.paths.work(task.id)).event(trouble.status, {"reason": trouble.reason})

    def _path(self, task: Ready) -> Path:
        return record_path(self.paths.records, task.id)
