"""The targets of a cell: from the cache, or made there by its prior (ReLA-D)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from bench.core.device import autocast
from bench.core.errors import UserError
from bench.core.files import remove_leftovers
from bench.core.lock import wait_for
from bench.core.paths import Paths
from bench.core.seeds import generator
from bench.data.augment import EvalView
from bench.data.loader import Source, StreamingLoader
from bench.grid.base import Precision
from bench.grid.cell import Cell
from bench.measure.clock import Clock
from bench.measure.flops import count_flops
from bench.models.backbones import build_backbone
from bench.plan.graph import Ready
from bench.targets.cache import Cost, Targets, cache_path, load_targets, save_targets, writing
from bench.targets.reduce import reduce_features
from bench.targets.rows import MemmapRows
from bench.targets.stream import stream_targets
from priors import Prior


def find_or_make_targets(
    task: Ready,
    train: Source,
    size: int,
    paths: Paths,
    clock: Clock,
    check: Callable[[], None],
    after_shard: Callable[[int], None],
) -> Targets | None:
    """Return the cell's targets, which the cache holds after; None for a cell without a prior.

    Of several runners one makes them, and the others wait; those of a GPU are not those of a CPU. Those of images that
    stream stay in their file. `after_shard` is called between two shards of them with the number of images whose
    features are on disk, `check` between two batches of others and while this waits; both may raise to stop there.
    """
    prior, choice = task.prior, task.cell.targets_of
    if prior is None or choice is None:
        return None
    count, dim = len(train.labels), build_backbone(task.cell.backbone, size).dim
    data, part, made_at = task.inputs.data, task.cell.train_images or 0, prior.input_size or size
    known = {"data": data, "prior": prior.digest(), "precision": choice.precision}
    known |= _known_if_special(task.cell, clock.device)
    path = cache_path(paths.targets or paths.cache, **known, part=part, size=made_at, dim=dim)
    find = partial(load_targets, path, count, in_file=isinstance(train, StreamingLoader))
    if found := find():
        return found
    with writing(path.parent):
        lock = wait_for(path.with_suffix(".lock"), check)
    with lock:
        if found := find():  # another runner has made them
            return found
        remove_leftovers(path)
        if isinstance(train, StreamingLoader):
            parts = partial(features, prior, train, size, clock, choice.precision)
            return stream_targets(parts, count, dim, path, clock, after_shard, maker=task.id)
        made = replace(make_targets(prior, train, dim, size, clock, choice.precision, check), maker=task.id)
        with clock.phase("other"), writing(path.parent):
            save_targets(made, path)
        return made


def _known_if_special(cell: Cell, device: torch.device) -> dict[str, str]:
    """Return what tells a trial's targets, and those of another device than a CPU, from the others."""
    found = {}
    if device.type != "cpu":  # its rounding may turn a component that has little variance
        found["device"] = device.type
    if held_out := cell.validation:
        found["without"] = f"{held_out.share} {held_out.seed}"
    return found


def make_targets(
    prior: Prior,
    train: Source,
    dim: int,
    size: int,
    clock: Clock,
    precision: Precision = "fp32",
    check: Callable[[], None] = lambda: None,
) -> Targets:
    """Return the targets that a prior makes of the training images, with their cost.

    Every image passes un-augmented through the prior in eval mode (ReLA-D; public code, in fp32). `check` is called
    after each batch and may raise to stop there.
    """
    began = clock.spent("targets")
    with clock.phase("targets"):
        parts, flops = [], 0
        for part, counted in features(prior, train, size, clock, precision):
            parts.append(part)
            flops += counted
            check()
        with torch.no_grad():
            values, empty = reduce_features(torch.cat(parts), dim)
    cost = Cost.of(clock.spent("targets") - began, flops, len(values), clock.side_by_side)
    return Targets(values.cpu(), empty, cost)


def features(
    prior: Prior, train: Source, size: int, clock: Clock, precision: Precision, first: int = 0
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield the prior's features float32 (b, p) of the images from `first` on, and the FLOPs that each batch took.

    Raises UserError when they are not finite.
    """
    model = prior.model().to(clock.device).to(memory_format=torch.channels_last).eval()
    flops = 0
    view = EvalView(prior.input_size or size, prior.mean, prior.std, precision)
    for batch in train.eval_batches(view, first):
        with torch.no_grad(), autocast(clock.device, precision):
            if not flops:
                with clock.phase("other"):
                    flops = count_flops(partial(model, batch[:1]))
            part = model(batch).flatten(1).float()
        if not part.isfinite().all():
            raise UserError(f"the prior's features, in {precision}, are not finite numbers")
        yield part, flops * len(batch)


def values_for(cell: Cell, targets: Targets, device: torch.device) -> torch.Tensor | MemmapRows:
    """Return the targets' values on the device, in another order where the cell wants them shuffled."""
    values, order = targets.values, None
    if cell.targets_of and cell.targets_of.shuffle:
        order = torch.randperm(len(values), generator=generator(cell.seed, "shuffle"))
    if isinstance(values, MemmapRows):
        return MemmapRows(values.path, values.shape, device, order)
    values = values.to(device)
    return values if order is None else values[order.to(device)]
