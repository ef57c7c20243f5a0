"""The targets of a cell: from the cache, or made there by its prior."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.backbones import build_backbone
from bench.flops import count_flops
from bench.meter import Clock
from bench.places import Places
from bench.plan import Task
from bench.seeds import generator
from bench.source import Source, Streaming
from bench.spec import Cell
from priors import Prior
from priors.mapped import Mapped
from priors.streamed import alone, load_rows, stream_targets
from priors.targets import Cost, Targets, cache_path, load_targets, reduce_features, save_targets


def find_or_make_targets(
    task: Task, train: Source, size: int, places: Places, clock: Clock, after_shard: Callable[[int], None]
) -> tuple[Targets, bool]:
    """Return the cell's targets and whether they were in the cache, which holds them after.

    Those of images that stream stay in their file; `after_shard` is called between two shards of them with the
    number of images whose features are on disk, and may raise to stop there.
    """
    assert task.prior is not None
    assert task.inputs is not None
    dim = build_backbone(task.cell.backbone, size).dim
    path = cache_path(
        places.cache,
        data=task.inputs.data,
        part=task.cell.train_images or 0,
        prior=task.prior.digest(),
        size=task.prior.input_size or size,
        dim=dim,
    )
    count = len(train.labels)
    if isinstance(train, Streaming):
        cached = load_rows(path, count)
        if cached:
            return cached, True
        with alone(path):  # then another process may have made them
            cached = load_rows(path, count)
            found = partial(features, task.prior, train, size, clock.device, clock)
            return cached or stream_targets(found, count, dim, path, clock, after_shard), bool(cached)
    cached = load_targets(path, count)
    if cached:
        return cached, True
    targets = make_targets(task.prior, train, dim, size, clock.device, clock)
    with clock.phase("other"):
        save_targets(targets, path)
    return targets, False


def make_targets(prior: Prior, train: Source, dim: int, size: int, device: torch.device, clock: Clock) -> Targets:
    """Return the targets that a prior makes of the training images, with their cost.

    Every image passes un-augmented through the prior in eval mode, in fp32 (ReLA-D, public code).
    """
    began = clock.spent("targets")
    with clock.phase("targets"):
        parts, flops = zip(*features(prior, train, size, device, clock), strict=True)
        with torch.no_grad():
            values, empty = reduce_features(torch.cat(parts), dim)
    spent = clock.spent("targets") - began
    return Targets(values.cpu(), empty, Cost(spent.seconds, sum(flops), len(values), spent.joules))


def features(
    prior: Prior, train: Source, size: int, device: torch.device, clock: Clock, first: int = 0
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield the prior's features float32 (b, p) of the images from `first` on, and the FLOPs that each batch took."""
    model = prior.model().to(device).to(memory_format=torch.channels_last).eval()
    flops = 0
    for batch in train.plain(prior.input_size or size, prior.mean, prior.std, first):
        with torch.no_grad():
            if not flops:
                with clock.phase("other"):
                    flops = count_flops(partial(model, batch[:1]))
            part = model(batch).flatten(1).float()
        yield part, flops * len(batch)


def values_for(cell: Cell, targets: Targets, device: torch.device) -> torch.Tensor | Mapped:
    """Return the targets' values on the device, in another order where the cell wants them shuffled."""
    values = targets.values.to(device)
    if not (cell.rela and cell.rela.shuffle):
        return values
    order = torch.randperm(len(values), generator=generator(cell.seed, "shuffle"))
    return values.permuted(order) if isinstance(values, Mapped) else values[order.to(device)]
