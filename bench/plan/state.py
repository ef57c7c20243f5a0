"""The state of tasks, read from their records."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.core.errors import FETCH
from bench.core.paths import Paths
from bench.grid.evaluation import Evaluation
from bench.plan.graph import Missing, Ready, Task
from bench.plan.stale import changed_text, stale_parts
from bench.store.evaluated import evaluated_in, question
from bench.store.record import Failed, Finished, Status, finished, read_record, read_records, record_path


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
        """Whether the task has no result and is not queued."""
        return self.status not in {"done", "queued"}


def is_done(task: Ready, paths: Paths, backbone_needed: bool = False) -> bool:
    """Return whether the task's result is there, and the backbone that a task to run needs from it."""
    done = finished(paths.records, task.id) is not None
    return done and (not backbone_needed or paths.backbone(task.id).is_file())


def unevaluated(task: Ready, paths: Paths) -> list[Evaluation]:
    """Return the further evaluations that are asked of a finished cell and have no record; a trial has none."""
    asked = () if task.cell.validation else task.cell.protocol.evaluate
    if not asked or not is_done(task, paths):
        return []
    there = {record.settles for record in evaluated_in(paths.evaluations(task.id))[0]}
    return [evaluation for evaluation in asked if question(task.id, evaluation) not in there]


def to_evaluate(task: Ready, paths: Paths) -> list[Evaluation]:
    """Return those of a finished cell's further evaluations that are to be made: its backbone is here."""
    return unevaluated(task, paths) if paths.backbone(task.id).is_file() else []


def unevaluated_text(tasks: Sequence[Task], paths: Paths) -> str:
    """Return which further evaluations of finished cells are missing, and in how many; "" if none is."""
    lines = []
    ready = [task for task in tasks if isinstance(task, Ready)]
    for kept in (True, False):
        cells = [task for task in ready if paths.backbone(task.id).is_file() == kept]
        names = Counter(each.name for task in cells for each in unevaluated(task, paths))
        if counts := ", ".join(f"{name} {count}" for name, count in names.items()):
            where = "" if kept else f", of cells whose backbones are not in {paths.records}"
            lines.append(f"further evaluations that are missing: {counts}{where}\n")
    return "".join(lines)


def to_run(tasks: Sequence[Task], paths: Paths) -> list[Ready]:
    """Return the tasks that have something to compute, in order; a lost backbone that one needs is trained again."""
    pending: set[str] = set()
    ready = [task for task in tasks if isinstance(task, Ready)]
    for task in reversed(ready):  # a task comes after what it needs
        if not is_done(task, paths, backbone_needed=task.id in pending):
            pending.add(task.id)
            if task.needs and not is_done(task.needs, paths, backbone_needed=not task.cell.matches):
                pending.add(task.needs.id)
    return [task for task in ready if task.id in pending]


def with_status(tasks: Sequence[Task], paths: Paths, wanted: Sequence[str]) -> list[Ready]:
    """Return the tasks whose records have one of the statuses of failure, and what these need, in order."""
    chosen: set[str] = set()
    ready = [task for task in tasks if isinstance(task, Ready)]
    for task in reversed(ready):
        record = read_record(record_path(paths.records, task.id))
        if task.id in chosen or (isinstance(record, Failed) and record.status in wanted):
            chosen |= {task.id, task.needs.id} if task.needs else {task.id}
    return [task for task in ready if task.id in chosen]


def shown_id(task: Task) -> str:
    """Return a task's id as a table shows it: "-" where it is not known."""
    return task.id if isinstance(task, Ready) else "-"


def facts(task: Task) -> dict[str, object]:
    """Return what a program is told of any task."""
    cell = task.cell
    return {"id": shown_id(task), "dataset": cell.dataset, "arm": cell.arm, "budget": cell.budget, "seed": cell.seed}


def recorded(tasks: Sequence[Task], paths: Paths) -> dict[str, Finished]:
    """Return the results of tasks that lack something here, by their cells' keys: of records from elsewhere."""
    lacking = {task.cell.key() for task in tasks if isinstance(task, Missing)}
    records = read_records(paths.records)[0] if lacking else []
    results = {record.cell.key(): record for record in records if isinstance(record, Finished)}
    return {key: result for key, result in results.items() if key in lacking}


def missing_text(tasks: Sequence[Task], paths: Paths, prepare: str) -> str:
    """Return what is missing here, each thing once, with how many cells it stops and how to get it; "" if nothing is.

    `prepare` is the command that fetches what can be fetched.
    """
    stopped = Counter(lack for task in tasks if isinstance(task, Missing) for lack in task.lacks)
    lines = []
    for lack, count in stopped.items():
        how = f"`{prepare}`" if lack.how.startswith(FETCH) else lack.how  # on one line: it is to be copied
        cells = "1 cell" if count == 1 else f"{count} cells"
        waits = "waits" if count == 1 else "wait"
        lines.append(f"{cells} {waits} for {lack.what}: {how}\n" if how else f"{cells} cannot run: {lack.what}\n")
    if any(lack.how for lack in stopped):
        lines.append(f"looked in {paths.data.absolute()}; --data-root names another folder\n")
    return "".join(lines)


def stale_text(tasks: Sequence[Task], paths: Paths) -> str:
    """Return which results are stale and how to get new ones, and which ones another version replaces; "" if none."""
    ready = {task.id: task for task in tasks if isinstance(task, Ready)}
    keys = {task.cell.key(): task for task in ready.values()}
    done = {record.id: record for record in read_records(paths.records)[0] if isinstance(record, Finished)}
    stale = [record for name, record in done.items() if name in ready and stale_parts(record)]
    lines: list[str] = []
    if stale:
        count = f"{len(stale)} finished {'cell is' if len(stale) == 1 else 'cells are'} stale: {changed_text(stale)}"
        lines = [f"{count}. What is stale counts as done; to run it anew, first:", f"  rm -r {_files(stale, paths)}"]
    versions = Counter(
        f"{task.cell.method} is of version {task.inputs.method_version}, and was of {record.inputs.method_version}"
        for name, record in done.items()
        if name not in ready and (task := keys.get(record.cell.key())) and task.id not in done
        if task.inputs.method_version != record.inputs.method_version
    )
    lines += [f"{count} to run anew: method {which}" for which, count in versions.items()]
    return "".join(f"{line}\n" for line in lines)


def _files(stale: Sequence[Finished], paths: Paths) -> str:
    """Return the files without which results are made anew, for a shell: records, and what may be cached of them."""
    names = ",".join(record.id for record in stale)
    files = [f"{shlex.quote(str(paths.records))}/{names if len(stale) == 1 else f'{{{names}}}'}.json"]
    if any({*stale_parts(record)} - {"method", "ReLA", "accelerator", "training"} for record in stale):
        caches = [paths.cache / name for name in ("targets", "references")]
        files += [shlex.quote(str(cache)) for cache in caches if cache.exists()]
    return " ".join(files)
