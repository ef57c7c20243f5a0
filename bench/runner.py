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

from bench.checkpoint import checkpoint_path
from bench.datasets import find_dataset
from bench.distributed import is_first, launch, wait, world
from bench.errors import UserError
from bench.experiment import Watch, run_cell
from bench.places import Places
from bench.plan import Task
from bench.progress import Display
from bench.provenance import provenance
from bench.store import Record, Status, read_record, record_path, write_record
from bench.train import Every, Interrupted, TrainingError

HEARTBEAT_SECONDS = 5.0
LAUNCH, FAILURE = "launch", "failure.txt"  # of several processes, in the cell's folder
DIED = "one of the processes that trained it died"


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
    given_up = {task.id: _given_up(task, places, device) for task in tasks if task.id in pending}
    wait()  # so that all processes have seen the same records
    outcomes: dict[int, Outcome] = {}
    with _stop_requests() as stop, display:
        display.begin(len(tasks))
        for task in tasks:
            needed = outcomes[id(task.needs)] if task.needs else None
            if task.missing:
                outcome = Outcome(task, "skipped", reason=task.missing)
            elif task.id not in pending:
                outcome = Outcome(task, "done", cached=True)
            elif reason := given_up[task.id]:
                outcome = Outcome(task, "failed", reason=reason)
            elif needed and needed.status != "done":
                outcome = Outcome(task, "skipped", reason=f"the cell {needed.task.id} that it needs is {needed.status}")
            else:
                outcome = _run(task, places, device, workers, display, stop)
            outcomes[id(task)] = outcome
            # Why a cell is skipped is said once, at the end: it is mostly the same for many.
            said = "" if outcome.status == "skipped" else outcome.reason
            display.finished(task.cell, outcome.status, outcome.cached, said)
    return list(outcomes.values())


class ProcessError(Exception):
    """One of several processes that train together has failed: those that are left cannot go on."""


def _run(task: Task, places: Places, device: torch.device, workers: int, display: Display, stop: list[int]) -> Outcome:
    work = places.work(task.id)
    work.mkdir(parents=True, exist_ok=True)
    heartbeat = Every(HEARTBEAT_SECONDS)

    def event(name: str, facts: dict[str, Any]) -> None:
        if is_first():
            _append(work / "events.jsonl", name, facts)
            display.event(task.cell, name, facts)

    def step(done: int, steps: int, loss: float) -> None:
        display.step(done, steps, loss)
        if heartbeat() and is_first():
            _append(work / "events.jsonl", "step", {"step": done, "steps": steps})

    display.started(task.cell)
    _begin(work)
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
        reason = _why(error)
        if is_first():
            (work / "traceback.txt").write_text(traceback.format_exc())
    else:
        if is_first():
            write_record(record, places.records)
            checkpoint_path(places, task.id).unlink(missing_ok=True)
            event("done", {})
        return Outcome(task, "done")
    if is_first():
        _write_failure(task, places, device, status, reason)
        event(status, {"reason": reason})
    elif not _lost_connection(reason):
        (work / FAILURE).write_text(reason)
    if world() > 1:  # the others may be anywhere in the cell; `torchrun --max-restarts` goes on with the next one
        raise ProcessError(reason)
    return Outcome(task, status, reason=reason)


def _write_failure(task: Task, places: Places, device: torch.device, status: Status, reason: str) -> None:
    assert task.inputs is not None
    failed = Record(
        id=task.id,
        grid=places.grid,
        status=status,
        cell=task.cell,
        inputs=task.inputs,
        dataset_title=places.mark + find_dataset(task.cell.dataset, places.data).title_here(places.data),
        error=reason,
        provenance=provenance(device) | ({"launch": name} if (name := launch()) else {}),
        rehearsal=places.rehearsal,
    )
    write_record(failed, places.records)


def _begin(work: Path) -> None:
    """Note which launch of several processes has begun the cell: should one of them die, the next ones know of it."""
    name = launch()
    if name and is_first():
        (work / FAILURE).unlink(missing_ok=True)
        (work / LAUNCH).write_text(name)


def _given_up(task: Task, places: Places, device: torch.device) -> str | None:
    """Return why an earlier set of processes of this launch did not finish the cell; None when none has begun it."""
    work, name = places.work(task.id), launch()
    if name is None or not (work / LAUNCH).is_file() or (work / LAUNCH).read_text() != name:
        return None
    record = read_record(record_path(places.records, task.id))
    # The first process records its own failure, but not that another one failed or that it was killed itself.
    told = (work / FAILURE).read_text() if (work / FAILURE).is_file() else ""
    known = record.error if isinstance(record, Record) and record.provenance.get("launch") == name else None
    if known and not (told and _lost_connection(known)):
        return known
    reason = f"one of the processes that trained it failed: {told}" if told else DIED
    if is_first():
        _write_failure(task, places, device, "failed", reason)
    return reason


def _why(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return DIED if world() > 1 and _lost_connection(text) else text


def _lost_connection(reason: str) -> bool:
    return reason == DIED or any(word in reason for word in ("Connection closed", "Connection reset", "NCCL", "gloo"))


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
