"""Runs the tasks of a plan: skips the finished, isolates the failures, writes the records."""

import json
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bench.datasets import find_dataset
from bench.errors import UserError
from bench.experiment import Watch, checkpoint_path, run_cell
from bench.places import Places
from bench.plan import Task
from bench.progress import Display
from bench.provenance import provenance
from bench.store import Record, Status, read_record, record_path, write_record
from bench.train import Every, Interrupted, TrainingError

HEARTBEAT_SECONDS = 5.0


@dataclass(frozen=True)
class Outcome:
    """What became of a task. `cached` tells that its record was there before."""

    task: Task
    status: Status
    cached: bool = False
    reason: str = ""


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


def run_tasks(
    tasks: Sequence[Task], places: Places, device: torch.device, workers: int, display: Display
) -> list[Outcome]:
    """Run what is not done yet and return what became of each task.

    A failure is recorded and ends only its own cell and those that need it. Raises Interrupted after the running
    cell is saved when the user asks to stop; what is finished stays.
    """
    pending = {task.id for task in to_run(tasks, places)}
    outcomes: dict[int, Outcome] = {}
    with _stop_requests() as stop, display:
        display.begin(len(tasks))
        for task in tasks:
            needed = outcomes[id(task.needs)] if task.needs else None
            if task.missing:
                outcome = Outcome(task, "skipped", reason=task.missing)
            elif task.id not in pending:
                outcome = Outcome(task, "done", cached=True)
            elif needed and needed.status != "done":
                outcome = Outcome(task, "skipped", reason=f"the cell {needed.task.id} that it needs is {needed.status}")
            else:
                outcome = _run(task, places, device, workers, display, stop)
            outcomes[id(task)] = outcome
            # Why a cell is skipped is said once, at the end: it is mostly the same for many.
            said = "" if outcome.status == "skipped" else outcome.reason
            display.finished(task.cell, outcome.status, outcome.cached, said)
    return list(outcomes.values())


def _run(task: Task, places: Places, device: torch.device, workers: int, display: Display, stop: list[int]) -> Outcome:
    work = places.work(task.id)
    work.mkdir(parents=True, exist_ok=True)
    heartbeat = Every(HEARTBEAT_SECONDS)

    def event(name: str, facts: dict[str, Any]) -> None:
        _append(work / "events.jsonl", name, facts)
        display.event(task.cell, name, facts)

    def step(done: int, steps: int, loss: float) -> None:
        display.step(done, steps, loss)
        if heartbeat():
            _append(work / "events.jsonl", "step", {"step": done, "steps": steps})

    display.started(task.cell)
    watch = Watch(step=step, event=event, stop=lambda: bool(stop))
    status: Status = "failed"
    try:
        record = run_cell(task, places, device, workers, watch)
    except Interrupted:
        event("interrupted", {})
        raise
    except (UserError, TrainingError) as error:
        reason = str(error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        status, reason = "oom", f"out of memory: {str(error).partition('.')[0]}"
    except Exception as error:  # a plugin may raise anything, and the other cells must go on
        reason = f"{type(error).__name__}: {error}"
        (work / "traceback.txt").write_text(traceback.format_exc())
    else:
        write_record(record, places.records)
        checkpoint_path(places, task.id).unlink(missing_ok=True)
        event("done", {})
        return Outcome(task, "done")
    assert task.inputs is not None
    failed = Record(
        id=task.id,
        grid=places.grid,
        status=status,
        cell=task.cell,
        inputs=task.inputs,
        dataset_title=places.mark + find_dataset(task.cell.dataset, places.data).title_here(places.data),
        error=reason,
        provenance=provenance(device),
        rehearsal=places.rehearsal,
    )
    write_record(failed, places.records)
    event(status, {"reason": reason})
    return Outcome(task, status, reason=reason)


def _append(path: Path, name: str, facts: dict[str, Any]) -> None:
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": name, **facts})
    with path.open("a") as file:
        file.write(line + "\n")


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Yield a list that the first SIGINT or SIGTERM fills; the second one of them acts as usual."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
