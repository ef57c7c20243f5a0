"""What became of tasks, as their records tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.core.paths import Places
from bench.plan.graph import Task
from bench.store.record import Record, Status, read_record, record_path


@dataclass(frozen=True)
class Outcome:
    """What became of a task. `cached`: its record was there before; `elsewhere`: another runner has made it since.

    A `queued` one was given to others, who will run it later.
    """

    task: Task
    status: Status | Literal["queued"]
    cached: bool = False
    reason: str = ""
    elsewhere: bool = False

    @property
    def bad(self) -> bool:
        """Whether the task has no result, and nobody who will make it."""
        return self.status not in {"done", "queued"}


def is_done(task: Task, places: Places, backbone_needed: bool = False) -> bool:
    """Return whether the task's record is there, and the backbone that a task to run needs from it."""
    record = read_record(record_path(places.records, task.id)) if task.id else None
    done = isinstance(record, Record) and record.status == "done"
    return done and (not backbone_needed or places.backbone(task.id).is_file())


def to_run(tasks: Sequence[Task], places: Places) -> list[Task]:
    """Return the tasks that have something to compute, in order; a lost backbone that one needs is trained again."""
    pending: set[str] = set()
    for task in reversed(tasks):  # a task comes after what it needs
        if task.missing:
            continue
        if not is_done(task, places, backbone_needed=task.id in pending):
            pending.add(task.id)
            if task.needs and not is_done(task.needs, places, backbone_needed=not task.cell.flops_of):
                pending.add(task.needs.id)
    return [task for task in tasks if task.id in pending]


def with_status(tasks: Sequence[Task], places: Places, wanted: Sequence[str]) -> list[Task]:
    """Return the tasks whose records have one of the statuses, and what these need, in order."""
    chosen: set[str] = set()
    for task in reversed(tasks):
        record = read_record(record_path(places.records, task.id)) if task.id else None
        if task.id in chosen or (isinstance(record, Record) and record.status in wanted):
            chosen |= {task.id, task.needs.id} if task.needs else {task.id}
    return [task for task in tasks if task.id in chosen]
