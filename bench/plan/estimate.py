"""What a run would do and cost: the table of `run --dry-run`."""

import functools
import json
from collections.abc import Sequence

import torch

from bench.core.errors import PluginError, UserError
from bench.core.paths import Places
from bench.data import image_size
from bench.data.sampler import total_steps
from bench.grid.schema import Cell
from bench.measure.flops import step_flops
from bench.models.backbones import build_backbone
from bench.plan.graph import Missing, Ready, Task
from bench.plan.state import to_run
from bench.store.record import Finished, read_records
from methods import Batch, Method, methods
from methods.rela import ReLA

SAMPLE = 2  # images in the step that is counted


def print_estimate(tasks: Sequence[Task], places: Places, device: torch.device, tflops: float | None) -> None:
    """Print the tasks in their order, what is done, and steps, images, FLOPs and time of the rest.

    `tflops` is the rate in TFLOP/s to turn FLOPs into time; without it, that of the records of this grid made on
    this kind of device; without those, no time is shown.
    """
    pending = {task.id for task in to_run(tasks, places)}
    rows = [("#", "cell", "dataset", "arm", "budget", "seed", "state", "steps", "images", "TFLOP")]
    steps_in_all = flops_in_all = unknown = 0
    for number, task in enumerate(tasks, start=1):
        cell, cost = task.cell, ("", "", "")
        if isinstance(task, Missing) or task.id in pending:
            if known := _cost(task, places):
                steps, images, flops = known
                steps_in_all += steps
                flops_in_all += flops
                cost = (f"{steps:,}", f"{images:,}", _tera(flops))
            else:
                unknown += 1
                cost = ("not known", "not known", "not known")
        identifier = task.id if isinstance(task, Ready) else "-"
        name = (str(number), identifier, cell.dataset, cell.arm, f"{cell.budget:g}", str(cell.seed))
        rows.append((*name, _state(task, pending), *cost))
    _print_table(rows)
    missing = [task for task in tasks if isinstance(task, Missing)]
    for reason in dict.fromkeys(task.reason for task in missing):
        print(f"missing: {reason}")
    rate = tflops * 1e12 if tflops else _measured_rate(places, device)
    summary = f"{len(pending)} of {len(tasks)} cells to run"
    summary += f", {len(missing)} more that miss something" if missing else ""
    if steps_in_all or not unknown:
        summary += f": {steps_in_all:,} steps, {_tera(flops_in_all)} TFLOP of training"
    if rate and steps_in_all:
        source = "as given" if tflops else f"as this grid's records on {device.type} had"
        summary += f", {duration(flops_in_all / rate)} at {rate / 1e12:.3g} TFLOP/s, {source}"
    elif not rate:
        summary += "; no time: no record of this grid on this device was measured alone, --tflops gives a rate"
    if unknown:
        summary += f"; what {unknown} of them take is not known: there are no images here to be counted"
    print(summary)
    if any(task.cell.rela and task.cell.rela.phase == "adaptive" for task in tasks):
        print("an adaptive ReLA phase counts as never ending or as ending at once, whichever costs more")


def _tera(flops: int) -> str:
    """Return FLOPs in TFLOP; few of them are not none."""
    return f"{flops / 1e12:,.2f}" if flops >= 1e10 or not flops else f"{flops / 1e12:.1g}"


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under a heading; columns of numbers are flushed right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = {index for index, name in enumerate(rows[0]) if name in {"#", "budget", "seed", "steps", "images", "TFLOP"}}
    for row in rows:
        cells = (f"{c:>{w}}" if i in right else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        print("  ".join(cells).rstrip())


def _cost(task: Task, places: Places) -> tuple[int, int, int] | None:
    """Return the steps, images and FLOPs of a cell; None where its images are not counted yet or a plugin fails."""
    if task.train_images is None:
        return None
    try:
        steps = total_steps(task.cell, task.train_images)
        images = steps * task.cell.protocol.batch_size
        return steps, images, images * flops_per_image(task.cell, image_size(task.cell, places))
    except UserError as error:
        if isinstance(error, PluginError):
            return None
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


def _measured_rate(places: Places, device: torch.device) -> float | None:
    records, _ = read_records(places.records)
    done = [record for record in records if isinstance(record, Finished)]
    ledgers = [each.ledger for each in done if each.provenance.get("device") == device.type and each.ledger.alone]
    seconds = sum(ledger.seconds["train"] for ledger in ledgers)
    return sum(ledger.flops for ledger in ledgers) / seconds if seconds else None


def _state(task: Task, pending: set[str]) -> str:
    if isinstance(task, Missing):
        return "missing"
    if task.id not in pending:
        return "done"
    return f"after {task.needs.id}" if task.needs and task.needs.id in pending else "ready"


def duration(seconds: float) -> str:
    """Return seconds in the largest unit of which there are two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1 or not seconds else f"{seconds:.1g} seconds"
