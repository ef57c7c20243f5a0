"""The targets of a cell: from the cache, or made there by its prior."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from bench.core.device import autocast
from bench.core.errors import UserError
from bench.core.files import remove_leftovers
from bench.core.lock import wait_for
from bench.core.paths import Places
from bench.core.seeds import generator
from bench.data.augment import EvalView
from bench.data.loader import Source, StreamingLoader
from bench.grid.schema import Cell, Precision
from bench.measure.clock import Clock
from bench.measure.flops import count_flops
from bench.models.backbones import build_backbone
from bench.plan.graph import Ready
from bench.targets.reduce import Cost, Targets, cache_path, load_targets, reduce_features, save_targets
from bench.targets.rows import Mapped
from bench.targets.stream import load_rows, stream_targets, writing
from priors import Prior


def find_or_make_targets(
    task: Ready,
    train: Source,
    size: int,
    places: Places,
    clock: Clock,
    check: Callable[[], None],
    after_shard: Callable[[int], None],
) -> tuple[Targets, bool]:
    """Return the cell's targets and whether another cell made them; the cache holds them after.

    Of several runners one makes them, and the others wait. Those of images that stream stay in their file.
    `after_shard` is called between two shards of them with the number of images whose features are on disk, `check`
    between two batches of others and while this waits; both may raise to stop there.
    """
    assert task.prior is not None
    assert task.inputs is not None
    assert task.cell.rela is not None
    precision = task.cell.rela.precision
    dim = build_backbone(task.cell.backbone, size).dim
    path = cache_path(
        places.targets or places.cache,
        data=task.inputs.data,
        part=task.cell.train_images or 0,
        prior=task.prior.digest(),
        size=task.prior.input_size or size,
        dim=dim,
        precision=precision,
    )
    count, load = len(train.labels), load_rows if isinstance(train, StreamingLoader) else load_targets
    if found := load(path, count):
        return found, found.maker != task.id
    with writing(path.parent):
        lock = wait_for(path.with_suffix(".lock"), check)
    with lock:
        if found := load(path, count):  # another runner has made them
            return found, found.maker != task.id
        remove_leftovers(path)
        if isinstance(train, StreamingLoader):
            parts = partial(features, task.prior, train, size, clock.device, clock, precision)
            return stream_targets(parts, count, dim, path, clock, after_shard, maker=task.id), False
        targets = make_targets(task.prior, train, dim, size, clock.device, clock, precision, check)
        with clock.phase("other"), writing(path.parent):
            save_targets(replace(targets, maker=task.id), path)
        return targets, False


def make_targets(
    prior: Prior,
    train: Source,
    dim: int,
    size: int,
    device: torch.device,
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
        for part, counted in features(prior, train, size, device, clock, precision):
            parts.append(part)
            flops += counted
            check()
        with torch.no_grad():
            values, empty = reduce_features(torch.cat(parts), dim)
    spent = clock.spent("targets") - began
    cost = Cost(spent.seconds, flops, len(values), spent.joules, clock.side_by_side, spent.other_load)
    return Targets(values.cpu(), empty, cost)


def features(
    prior: Prior, train: Source, size: int, device: torch.device, clock: Clock, precision: Precision, first: int = 0
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield the prior's features float32 (b, p) of the images from `first` on, and the FLOPs that each batch took.

    Raises UserError when they are not finite.
    """
    model = prior.model().to(device).to(memory_format=torch.channels_last).eval()
    flops = 0
    view = EvalView(prior.input_size or size, prior.mean, prior.std, precision)
    for batch in train.eval_batches(view, first):
        with torch.no_grad(), autocast(device, precision):
            if not flops:
                with clock.phase("other"):
                    flops = count_flops(partial(model, batch[:1]))
            part = model(batch).flatten(1).float()
        if not part.isfinite().all():
            raise UserError(f"the prior's features, in {precision}, are not finite numbers")
        yield part, flops * len(batch)


def values_for(cell: Cell, targets: Targets, device: torch.device) -> torch.Tensor | Mapped:
    """Return the targets' values on the device, in another order where the cell wants them shuffled."""
    values = targets.values.to(device)
    if not (cell.rela and cell.rela.shuffle):
        return values
    order = torch.randperm(len(values), generator=generator(cell.seed, "shuffle"))
    return values.permuted(order) if isinstance(values, Mapped) else values[order.to(device)]
