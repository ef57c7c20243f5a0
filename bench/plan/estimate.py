"""What a run would do and cost: the table of `run --dry-run`."""

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bench.core.errors import PluginError, UserError
from bench.core.paths import Paths
from bench.core.terminal import table_text
from bench.data import image_size
from bench.data.sampler import total_steps
from bench.grid.cell import Cell
from bench.grid.tune import arm_or_trials
from bench.measure.flops import step_flops
from bench.models.backbones import build_backbone
from bench.plan.graph import Missing, Ready, Task, Waiting
from bench.plan.state import facts, recorded, to_run
from bench.store.record import Finished, read_records
from methods import Batch, Method, accelerators, methods
from methods.rela import ReLA

SAMPLE = 2  # images in the step that is counted
ASSUMED = 300e12  # FLOP/s of a GPU, where no record tells a rate
HEAD = ("dataset", "arm", "budget", "cells", "steps", "FLOP")
UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("FLOP", 1))


class Cost(NamedTuple):
    """What training a cell takes."""

    steps: int
    images: int
    flops: int


@dataclass(frozen=True)
class Line:
    """A task, whether it is done, ready, missing or comes after another, and its cost, None where it is not known."""

    task: Task
    kind: str
    cost: Cost | None

    def facts(self) -> dict[str, object]:
        """Return what a program is told."""
        known = self.cost._asdict() if self.cost else dict.fromkeys(Cost._fields)
        return {**facts(self.task), "state": self.kind, **known}


def estimated(tasks: Sequence[Task], paths: Paths) -> list[Line]:
    """Return the tasks in their order, with their costs where they are not done."""
    pending, elsewhere = {task.id for task in to_run(tasks, paths)}, recorded(tasks, paths)
    lines = []
    for task in tasks:
        done = task.id not in pending if isinstance(task, Ready) else task.cell.key() in elsewhere
        lines.append(Line(task, "done", None) if done else Line(task, _kind(task, pending), _cost(task, paths)))
    return lines


def print_estimate(lines: Sequence[Line]) -> None:
    """Print what is to be done and what it costs, by dataset, arm and budget."""
    groups: dict[tuple[str, str, str], list[Line]] = defaultdict(list)
    for line in lines:
        cell = line.task.cell
        groups[cell.dataset, arm_or_trials(cell), f"{cell.budget:.0%}"].append(line)
    rows = []
    for names, there in groups.items():
        counts = Counter("waiting" if line.kind == "after" else line.kind for line in there)
        steps, _, flops = _total(there)
        known = any(line.cost for line in there)
        shown = (f"{steps:,}", flop(flops)) if known else ("", "") if counts.keys() == {"done"} else ("not known",) * 2
        rows.append((*names, ", ".join(f"{count} {kind}" for kind, count in counts.items()), *shown))
    print(table_text(HEAD, rows, HEAD[4:], shorten="arm", states="cells"))


def cost_lines(lines: Sequence[Line], paths: Paths, device: torch.device) -> list[str]:
    """Return what is to do in all, and how long it takes."""
    todo = [line for line in lines if line.kind != "done"]
    lacking, unknown = sum(line.kind == "missing" for line in todo), sum(line.cost is None for line in todo)
    steps, _, flops = _total(todo)
    said = [f"{len(todo) - lacking} of {len(lines)} cells to run"]
    if lacking:
        said[0] += f", {lacking} more that lack something"
    if steps:
        said.append(f"{flop(flops)} of training in {steps:,} steps:")
        said.append(_time(flops, measured_rate(paths, device), device))
    if unknown:
        said.append(f"the cost of {unknown} of them is not known before they run")
    if any(line.task.cell.rela and line.task.cell.rela.phase == "adaptive" for line in todo):
        said.append("an adaptive ReLA phase counts as never ending or as ending at once, whichever costs more")
    return said


def _time(flops: int, rate: float | None, device: torch.device) -> str:
    """Return how long FLOPs take at a rate that is named."""
    if rate:
        return f"{duration(flops / rate)} at {rate / 1e12:.3g} TFLOP/s, as in this grid's records on {device.type}"
    hours = flops / ASSUMED / 3600
    short = duration(hours * 3600) if hours * 3600 >= 1 else "under a second"
    took = f"{hours:,.0f} GPU-hours" if hours >= 2 else f"{short} of a GPU"
    return f"{took} at an assumed {ASSUMED / 1e12:.0f} TFLOP/s; no record of the grid tells a rate"


def flop(value: float) -> str:
    """Return FLOPs in the largest unit of which there is one; a small number is not rounded to 0."""
    name, size = next((unit for unit in UNITS if value >= unit[1]), UNITS[-1])
    return f"{value / size:,.0f} {name}" if value >= 100 * size else f"{value / size:.3g} {name}"


def _total(lines: Sequence[Line]) -> Cost:
    known = [line.cost for line in lines if line.cost]
    return Cost(sum(c.steps for c in known), sum(c.images for c in known), sum(c.flops for c in known))


def _kind(task: Task, pending: Collection[str]) -> str:
    """Return how far a task is that is not done."""
    if isinstance(task, Missing):
        return "missing"
    waits = isinstance(task, Waiting) or (task.needs and task.needs.id in pending)
    return "after" if waits else "ready"


def _cost(task: Task, paths: Paths) -> Cost | None:
    """Return what a cell takes; None where its images are not counted yet or a plugin fails."""
    if task.train_images is None:
        return None
    try:
        steps = total_steps(task.cell, task.train_images)
        images = steps * task.cell.protocol.batch_size
        return Cost(steps, images, images * flops_per_image(task.cell, image_size(task.cell, paths)))
    except PluginError:
        return None
    except UserError:
        raise
    except (Exception, SystemExit):  # a plugin may raise anything
        return None


def flops_per_image(cell: Cell, size: int) -> int:
    """Return the training FLOPs for each image; of ReLA's two phases, the dearer one's."""
    setting = (cell.backbone, cell.method, json.dumps(cell.params, sort_keys=True), size)
    around = (cell.accelerate.name, json.dumps(cell.accelerate.params, sort_keys=True)) if cell.accelerate else ("", "")
    phases = (False, True) if cell.rela else (False,)
    return max(_step_flops(*setting, rela, *around) for rela in phases) // SAMPLE


@functools.cache
def _step_flops(backbone: str, method: str, params: str, size: int, rela: bool, name: str, around: str) -> int:
    """Return the FLOPs of a step on SAMPLE images, counted by taking one on the CPU."""
    network = build_backbone(backbone, size)
    stepped: Method = methods.build(method, network.module, network.dim, json.loads(params))
    if rela:
        stepped = ReLA(stepped, network.dim)
    if name:
        stepped = accelerators.build(name, stepped, network.dim, json.loads(around))
    sizes = [view.pixels(size) for view in stepped.views]
    views = [torch.rand(SAMPLE, 3, pixels, pixels) for pixels in sizes]
    batch = Batch(views, torch.zeros(SAMPLE, dtype=torch.int64), torch.rand(SAMPLE, network.dim))
    return step_flops(lambda: stepped.loss(batch))


def measured_rate(paths: Paths, device: torch.device) -> float | None:
    """Return the FLOP/s that the records of the grid on this kind of device had, those that were measured alone."""
    done = [record for record in read_records(paths.records)[0] if isinstance(record, Finished)]
    ledgers = [each.ledger for each in done if each.provenance.get("device") == device.type and each.ledger.alone]
    seconds = sum(ledger.seconds["train"] for ledger in ledgers)
    return sum(ledger.flops for ledger in ledgers) / seconds if seconds else None


def duration(seconds: float) -> str:
    """Return seconds in the largest unit of which there are two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1 or not seconds else f"{seconds:.1g} seconds"
