"""What there is by name, and how far a task is."""

import inspect
import json
import statistics
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import PluginError, UserError, did_you_mean, told
from bench.core.lock import holder
from bench.core.paths import Places
from bench.core.registry import Registry
from bench.grid.load import GRIDS
from bench.grid.strict_yaml import read_yaml
from bench.plan.estimate import duration
from bench.plan.graph import Missing, Task
from bench.run.events import EVENTS
from bench.store.record import Damaged, Failed, Finished, read_record, record_path

if TYPE_CHECKING:
    from bench.run.executors.slurm import Job

NEVER = {"failed", "oom", "timeout", "skipped"}  # what needs such a cell does not run


def listing(what: str, data: Path) -> list[tuple[str, str]]:
    """Return the names of a kind of thing with a line on each. Raises UserError on an unknown kind."""
    if what == "grids":
        return [
            (path.stem, str(read_yaml(path.read_text(encoding="utf-8"), str(path)).get("title", "")))
            for path in sorted(GRIDS.glob("*.yaml"))
        ]
    if what == "methods":
        from methods import methods

        return [(name, _line(methods, name)) for name in methods]
    if what == "priors":
        return _priors(data)
    if what == "datasets":
        from bench.data import datasets

        return [(name, _dataset(name, data)) for name in datasets]
    if what == "backbones":
        from bench.models.backbones import backbones

        timm = ("timm:<model>", "any model of timm, also by its bare name.")
        return [*((name, _line(backbones, name)) for name in backbones), timm]
    if what == "executors":
        from bench.run.executors import executors

        return [(name, _line(executors, name)) for name in executors]
    kinds = ["methods", "priors", "datasets", "backbones", "grids", "executors"]
    raise UserError(f"list {what}: no such thing{did_you_mean(what, kinds)}")


def _priors(data: Path) -> list[tuple[str, str]]:
    """Return the kinds of priors, then the named ones with what they are and whether their weights are here."""
    from priors import priors
    from priors.catalogue import CATALOGUE

    kinds = [(name, _line(priors, name)) for name in priors if name not in CATALOGUE]
    trained = ("<DATASET>-T", "the backbone of the BYOL cell at the full budget of the same grid, such as CF10-T.")
    named = []
    for name, entry in CATALOGUE.items():
        if entry.model is None and name in priors:
            state = f"from a plugin: {_line(priors, name)}"
        elif entry.model is None:
            state = "bring its features in a --plugin file"
        else:
            state = "ready here" if entry.path(data).is_file() else f"not in {data}; `prepare` downloads it"
        named.append((name, f"{entry.line()}; {state}"))
    return [*kinds, trained, *named]


def state_of(task: Task, places: Places, jobs: "Mapping[str, Job] | None" = None) -> str:
    """Return how far a task is: done, failed, running at a step, queued, interrupted, waiting, skipped, missing.

    `jobs` are those of a cluster, by the cells' ids.
    """
    if isinstance(task, Missing):
        return f"missing: {task.reason}"
    path, job = record_path(places.records, task.id), (jobs or {}).get(task.id)
    record = read_record(path) if path.exists() else None
    log = places.work(task.id) / EVENTS
    last = _last_event(log)
    at = f", step {last['step']:,}" if last and "step" in last else ""
    done = isinstance(record, Finished)
    if not done and (found := holder(places.lock(task.id))):
        return f"running ({found}){at}{_left(log)}{f'; {job}' if job and job.queued else ''}"
    if not done and job and job.queued:
        return f"running ({job}), starting" if job.state == "RUNNING" else f"queued ({job}){at}"
    if isinstance(record, Damaged):
        return f"damaged: {record.path}: {record.reason}"
    if isinstance(record, Failed):
        return f"{record.status}: {record.error}"
    if record:
        return f"done, linear {statistics.fmean(record.final.linear):.1%}"
    if task.needs and (needed := state_of(task.needs, places, jobs).partition(":")[0]) in NEVER:
        return f"skipped: the cell {task.needs.id} that it needs is {needed}"
    if job and job.state == "" and job.log.exists():
        return f"stopped: job {job.id} has left the queue{at}; {job.log}"
    if last:
        return f"started: {last['event']} at {last['time']}{at}"
    return f"submitted: job {job.id}; no Slurm here to ask about it" if job and job.state is None else "waiting"


def _last_event(path: Path) -> dict[str, Any] | None:
    """Return the last whole event of a cell's log."""
    return next(_events(path), None)


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole events of a cell's log, the last one first; a kill may have cut a line short."""
    if not path.is_file():
        return
    for line in reversed(path.read_text(errors="replace").splitlines()):
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and {"event", "time"} <= event.keys() and type(event.get("step", 0)) is int:
                yield event


def _left(path: Path) -> str:
    """Return how long the steps that are left take, at the pace since the cell began or went on; "" when too early."""
    last = None
    with suppress(LookupError, TypeError, ValueError, ArithmeticError):  # the lines may be another hand's
        for event in _events(path):
            if event["event"] == "step":
                last = last or event
            elif event["event"] in {"start", "resume"} and last:
                began, seen = (datetime.fromisoformat(each["time"]) for each in (event, last))
                pace = (seen - began).total_seconds() / (last["step"] - event["step"])
                return f" of {last['steps']:,}, about {duration(pace * (last['steps'] - last['step']))} left"
    return ""


def _line(registry: Registry[Any], name: str) -> str:
    """Return the first line of what something says of itself, or else what is wrong with it."""
    try:
        return (inspect.getdoc(registry.get(name)) or "").partition("\n")[0]
    except PluginError as error:
        return str(error)


def _dataset(name: str, data: Path) -> str:
    """Return a dataset's title and whether it is here, or else what is wrong with it.

    A part of it is known as one once its images were counted.
    """
    from bench.data import cached_facts, find_dataset

    try:
        info = find_dataset(name, data)
        if not info.here(data):
            return f"{info.title}: not in {data}; {info.hint}"
        facts = cached_facts(info, Places(data=data, results=data, grid=""))
        return f"{facts.title}: here" if facts else f"{info.title_here(data)}: here; `prepare` counts its images"
    except Exception as error:  # a plugin may raise anything
        return told(error)
