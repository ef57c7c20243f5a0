"""How far a task is, by its record, its lock, its log and its job."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.core.lock import holder
from bench.core.paths import Paths
from bench.plan.estimate import duration
from bench.plan.graph import Missing, Ready, Task, Waiting
from bench.plan.state import recorded
from bench.run.events import EVENTS, backwards
from bench.run.executors.slurm import Job
from bench.store.reading import Damaged
from bench.store.record import Failed, Finished, read_record, record_path, score_linear

NEVER = {"failed", "oom", "timeout", "skipped"}  # what needs such a cell does not run


@dataclass(frozen=True)
class State:
    """How far a task is, in words of which the first is the kind, and its linear accuracy once it is done."""

    text: str
    linear: float | None = None

    @property
    def kind(self) -> str:
        """One of done, failed, oom, timeout, running, queued, started, waiting, skipped, missing, ..."""
        return re.split(r"\W", self.text)[0]


def states_of(tasks: Sequence[Task], paths: Paths, jobs: Mapping[str, Job] | None = None) -> list[State]:
    """Return how far each task is; `jobs` are those of a cluster, by the cells' ids."""
    elsewhere = recorded(tasks, paths)
    return [
        _done(elsewhere[task.cell.key()], " (record; data not here)")
        if isinstance(task, Missing) and task.cell.key() in elsewhere
        else state_of(task, paths, jobs)
        for task in tasks
    ]


def _done(record: Finished, where: str = "") -> State:
    linear = score_linear(record.final)
    return State(f"done{where}, linear {linear:.1%}", linear)


def state_of(task: Task, paths: Paths, jobs: Mapping[str, Job] | None = None) -> State:
    """Return how far a task is, as seen from this machine."""
    if isinstance(task, Missing):
        return State(f"missing: {task.reason}")
    if isinstance(task, Waiting):
        return State(f"waiting: {task.reason}")
    path = record_path(paths.records, task.id)
    record = read_record(path) if path.exists() else None
    return _done(record) if isinstance(record, Finished) else State(_unfinished(task, paths, jobs or {}, record))


def _unfinished(task: Ready, paths: Paths, jobs: Mapping[str, Job], record: Failed | Damaged | None) -> str:
    """Return how far a task is that has no result: failed, running at a step, queued, interrupted, waiting, skipped."""
    job = jobs.get(task.id)
    log = paths.work(task.id) / EVENTS
    last = last_event(log)
    at = f", step {last['step']:,}" if last and "step" in last else ""
    if found := holder(paths.lock(task.id)):
        return f"running ({found}){at}{_left(log)}{f'; {job}' if job and job.queued else ''}"
    if job and job.queued:
        return f"running ({job}), starting" if job.state == "RUNNING" else f"queued ({job}){at}"
    if isinstance(record, Damaged):
        return f"damaged: {record.path}: {record.reason}"
    if isinstance(record, Failed):
        return f"{record.status}: {record.error}"
    if task.needs and (needed := state_of(task.needs, paths, jobs).kind) in NEVER:
        return f"skipped: the cell {task.needs.id} that it needs is {needed}"
    if job and job.state == "" and job.log.exists():
        return f"stopped: job {job.id} has left the queue{at}; {job.log}"
    if last:
        return f"started: {last['event']} at {last['time']}{at}"
    return f"submitted: job {job.id}; no Slurm here to ask about it" if job and job.state is None else "waiting"


def last_event(path: Path) -> dict[str, Any] | None:
    """Return the last whole event of a cell's log."""
    return next(_events(path), None)


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a cell's log that have a time, the last one first."""
    return (event for event in backwards(path) if "time" in event and type(event.get("step", 0)) is int)


def _left(path: Path) -> str:
    """Return how long the steps that are left take, at the pace since the cell began or went on; "" when too early."""
    last = None
    with suppress(LookupError, TypeError, ValueError, ArithmeticError):  # somebody may have edited the log
        for event in _events(path):
            if event["event"] == "step":
                last = last or event
            elif event["event"] in {"start", "resume"} and last:
                began, seen = (datetime.fromisoformat(each["time"]) for each in (event, last))
                pace = (seen - began).total_seconds() / (last["step"] - event["step"])
                return f" of {last['steps']:,}, about {duration(pace * (last['steps'] - last['step']))} left"
    return ""
