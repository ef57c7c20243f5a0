"""What a run would do and cost: the table of `run --dry-run`."""

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from bench.core.errors import PluginError, UserError
from bench.core.paths import Places
from bench.core.terminal import print_table
from bench.data import image_size
from bench.data.sampler import total_steps
from bench.grid.cell import Cell
from bench.measure.flops import step_flops
from bench.models.backbones import build_backbone
from bench.plan.graph import Missing, Ready, Task
from bench.plan.state import print_missing, to_run
from bench.store.record import Finished, read_records
from methods import Batch, Method, methods
from methods.rela import ReLA

SAMPLE = 2  # images in the step that is counted
NUMBERS = ("#", "steps", "images", "TFLOP")


class Cost(NamedTuple):
    """What training a cell takes."""

    steps: int
    images: int
    flops: int


def print_estimate(tasks: Sequence[Task], places: Places, device: torch.device, tflops: float | None) -> None:
    """Print the tasks in their order, what is done, and steps, images, FLOPs and time of the rest.

    `tflops` is the rate in TFLOP/s to turn FLOPs into time; without it, that of the records of this grid made on
    this kind of device; without those, no time is shown.
    """
    pending = {task.id for task in to_run(tasks, places)}
    places_in_line = {task.id: number for number, task in enumerate(tasks, 1) if isinstance(task, Ready)}
    costs: list[Cost | None] = []
    rows = []
    for number, task in enumerate(tasks, 1):
        row = (str(number), task.id if isinstance(task, Ready) else "-", str(task.cell))
        if isinstance(task, Ready) and task.id not in pending:
            rows.append((*row, "done", "", "", ""))
            continue
        cost = _cost(task, places)
        costs.append(cost)
        shown = (f"{cost.steps:,}", f"{cost.images:,}", _tera(cost.flops)) if cost else ("not known",) * 3
        rows.append((*row, _state(task, pending, places_in_line), *shown))
    print_table(("#", "id", "cell", "state", "steps", "images", "TFLOP"), rows, NUMBERS)
    print_missing(tasks)
    print(f"{len(pending)} of {len(tasks)} cells to run{_summary(costs, len(pending), places, device, tflops)}")
    if any(task.cell.rela and task.cell.rela.phase == "adaptive" for task in tasks):
        print("an adaptive ReLA phase counts as never ending or as ending at once, whichever costs more")


def _state(task: Task, pending: Collection[str], places_in_line: Mapping[str, int]) -> str:
    """Return how far a task is that is not done."""
    if isinstance(task, Missing):
        return "missing"
    return f"after {places_in_line[task.needs.id]}" if task.needs and task.needs.id in pending else "ready"


def _summary(
    costs: Sequence[Cost | None], pending: int, places: Places, device: torch.device, tflops: float | None
) -> str:
    """Return how much is to do in all, and how long it takes."""
    known = [cost for cost in costs if cost]
    steps, flops = sum(cost.steps for cost in known), sum(cost.flops for cost in known)
    rate = tflops * 1e12 if tflops else measured_rate(places, device)
    text = f", {len(costs) - pending} more that miss something" if len(costs) > pending else ""
    if steps or len(known) == len(costs):
        text += f": {steps:,} steps, {_tera(flops)} TFLOP of training"
    if rate is None:
        text += "; no time: no record of this grid on this device was measured alone, --tflops gives a rate"
    elif steps:
        source = "as given" if tflops else f"as this grid's records on {device.type} had"
        text += f", {duration(flops / rate)} at {rate / 1e12:.3g} TFLOP/s, {source}"
    if unknown := len(costs) - len(known):
        text += f"; what {unknown} of them take is not known: there are no images here to be counted"
    return text


def _tera(flops: int) -> str:
    """Return FLOPs in TFLOP; a small number is not rounded to 0."""
    return f"{flops / 1e12:,.2f}" if flops >= 1e10 or not flops else f"{flops / 1e12:.1g}"


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
    return max(_step_flops(*setting, rela=False), _step_flops(*setting, rela=True) if cell.rela else 0) // SAMPLE


@functools.cache
def _step_flops(backbone: str, method: str, params: str, size: int, rela: bool) -> int:
    """Return the FLOPs of a step on SAMPLE images, counted by taking one on the CPU."""
    network = build_backbone(backbone, size)
    around = methods.build(method, network.module, network.dim, json.loads(params))
    stepped: Method = ReLA(around, network.dim) if rela else around
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
