"""What a run would do and cost: the table of `run --dry-run`."""

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bench.core.errors import PluginError, UserError
from bench.core.paths import Places
from bench.core.terminal import print_table
from bench.data import image_size
from bench.data.sampler import total_steps
from bench.grid.cell import Cell
from bench.grid.tune import arm_or_trials
from bench.measure.flops import step_flops
from bench.models.backbones import build_backbone
from bench.plan.graph import Missing, Ready, Task, Waiting
from bench.plan.state import facts, recorded, shown_id, to_run
from bench.store.record import Finished, read_records
from methods import Batch, Method, accelerators, methods
from methods.rela import ReLA

SAMPLE = 2  # images in the step that is counted
ASSUMED = 300e12  # FLOP/s of a GPU, where no record tells a rate
HEAD = ("dataset", "arm", "budget", "cells", "steps", "FLOP")
CELL_HEAD = ("#", "id", "cell", "state", "steps", "images", "FLOP")
UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("FLOP", 1))


class Cost(NamedTuple):
    """What training a cell takes."""

    steps: int
    images: int
    flops: int


@dataclass(frozen=True)
class Line:
    """A task in its order, what is to be done with it, and what it costs; None where it is done or nobody knows."""

    number: int
    task: Task
    state: str
    cost: Cost | None

    @property
    def kind(self) -> str:
        """One of done, ready, after, missing."""
        return self.state.partition(" ")[0]

    def facts(self) -> dict[str, object]:
        """Return what a program is told."""
        known = self.cost._asdict() if self.cost else dict.fromkeys(Cost._fields)
        return {**facts(self.task), "state": self.kind, **known}


def estimated(tasks: Sequence[Task], places: Places) -> list[Line]:
    """Return the tasks in their order, with their costs where they are not done."""
    pending, elsewhere = {task.id for task in to_run(tasks, places)}, recorded(tasks, places)
    numbers = {task.id: number for number, task in enumerate(tasks, 1) if isinstance(task, Ready)}
    lines = []
    for number, task in enumerate(tasks, 1):
        done = task.id not in pending if isinstance(task, Ready) else task.cell.key() in elsewhere
        state = "done" if done else _state(task, pending, numbers)
        lines.append(Line(number, task, state, None if done else _cost(task, places)))
    return lines


def print_estimate(lines: Sequence[Line], cells: bool) -> None:
    """Print what is to be done and what it costs: by dataset, arm and budget, or cell by cell."""
    if cells:
        every = [
            (str(line.number), shown_id(line.task), str(line.task.cell), line.state, *_shown(line)) for line in lines
        ]
        print_table(CELL_HEAD, every, ("#", *CELL_HEAD[4:]), shorten="cell", states="state")
        return
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
    print_table(HEAD, rows, HEAD[4:], shorten="arm", states="cells")


def cost_lines(lines: Sequence[Line], places: Places, device: torch.device) -> list[str]:
    """Return what is to do in all, and how long it takes."""
    todo = [line for line in lines if line.kind != "done"]
    lacking, unknown = sum(line.kind == "missing" for line in todo), sum(line.cost is None for line in todo)
    steps, _, flops = _total(todo)
    said = [f"{len(todo) - lacking} of {len(lines)} cells to run"]
    if lacking:
        said[0] += f", {lacking} more that lack something"
    if steps:
        said.append(f"{flop(flops)} of training in {steps:,} steps:")
        said.append(_time(flops, measured_rate(places, device), device))
    if unknown:
        said.append(f"what {unknown} of them take is not known: there are no images here to be counted")
    if any(line.task.cell.rela and line.task.cell.rela.phase == "adaptive" for line in todo):
        said.append("an adaptive ReLA phase counts as never ending or as ending at once, whichever costs more")
    return said


def _time(flops: int, rate: float | None, device: torch.device) -> str:
    """Return how long FLOPs take at a rate that is named."""
    if rate:
        return f"{duration(flops / rate)} at {rate / 1e12:.3g} TFLOP/s, as this grid's records on {device.type} had"
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


def _shown(line: Line) -> tuple[str, str, str]:
    """Return the cost of a cell as text."""
    if line.cost:
        return f"{line.cost.steps:,}", f"{line.cost.images:,}", flop(line.cost.flops)
    return ("", "", "") if line.kind == "done" else ("not known",) * 3


def _state(task: Task, pending: Collection[str], numbers: Mapping[str, int]) -> str:
    """Return how far a task is that is not done."""
    if isinstance(task, Missing):
        return "missing"
    if isinstance(task, Waiting):
        return "after its trials"
    return f"after {numbers[task.needs.id]}" if task.needs and task.needs.id in pending else "ready"


def _cost(task: Task, places: Places) -> Cost | None:
    """Return what a cell takes; None where its images are not counted yet or a plugin fails."""
    if task.train_images is None:
        return None
    try:
        steps = total_steps(task.cell, task.train_images)
        images = steps * task.cell.protocol.batch_size
        return Cost(steps, images, images * flops_per_image(task.cell, image_size(task.cell, places)))
    except PluginError:
        return None
    except UserError:
        raise
    except (Exception, SystemExit):  # a plugin may raise anything
        return None


def flops_per_image(cell: Cell, size: int) -> int:
    """Return the training FLOPs for each image; of ReLA's two phases, the dearer one's."""
    setting = (cell.backbone, cell.method, json.dumps(cell.params, sort_keys=True), size)
    wrapper = "rela" if cell.rela else cell.accelerate.name if cell.accelerate else ""
    params = json.dumps(cell.accelerate.params, sort_keys=True) if cell.accelerate else "{}"
    phases = ("", wrapper) if cell.rela else (wrapper,)
    return max(_step_flops(*setting, each, params) for each in phases) // SAMPLE


@functools.cache
def _step_flops(backbone: str, method: str, params: str, size: int, wrapper: str, wrapper_params: str) -> int:
    """Return the FLOPs of a step on SAMPLE images, counted by taking one on the CPU."""
    network = build_backbone(backbone, size)
    around = methods.build(method, network.module, network.dim, json.loads(params))
    stepped: Method = ReLA(around, network.dim) if wrapper == "rela" else around
    if wrapper not in {"", "rela"}:
        stepped = accelerators.build(wrapper, around, network.dim, json.loads(wrapper_params))
    views = [torch.rand(SAMPLE, 3, size, size) for _ in stepped.views]
    batch = Batch(views, torch.zeros(SAMPLE, dtype=torch.int64), torch.rand(SAMPLE, network.dim))
    return step_flops(lambda: stepped.loss(batch))


def measured_rate(places: Places, device: torch.device) -> float | None:
    """Return the FLOP/s that the records of the grid on this kind of device had, those that were measured alone."""
    done = [record for record in read_records(places.records)[0] if isinstance(record, Finished)]
    ledgers = [each.ledger for each in done if each.provenance.get("device") == device.type and each.ledger.alone]
    seconds = sum(ledger.seconds["train"] for ledger in ledgers)
    return sum(ledger.flops for ledger in ledgers) / seconds if seconds else None


def duration(seconds: float) -> str:
    """Return seconds in the largest unit of which there are two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1 or not seconds else f"{seconds:.1g} seconds"
