"""One cell, from its data to its record."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.atomic import atomic_write
from bench.backbones import build_backbone
from bench.budget import evaluation_steps, total_steps
from bench.datasets import ImageSet, Split, balanced_part, image_size, load_dataset
from bench.distributed import any_of, first_then_others, is_first, synchronise_batch_norm, world
from bench.errors import UserError
from bench.evaluate import extract, knn_accuracy, linear_probe
from bench.flops import NOT_COUNTED, count_flops
from bench.meter import Clock, peak_memory, reset_peak_memory
from bench.places import Places
from bench.plan import Task, makes_prior
from bench.provenance import provenance
from bench.seeds import derive, generator
from bench.source import Order, Source, Streaming, open_source
from bench.spec import Cell
from bench.store import Ledger, Point, Record, Score, TargetCost, read_record, record_path
from bench.train import CHECKPOINT_SECONDS, Every, Interrupted, Trainer
from methods import Method, methods
from methods.rela import ReLA
from priors import Prior
from priors.mapped import Mapped
from priors.streamed import alone, load_rows, stream_targets
from priors.targets import Cost, Targets, cache_path, load_targets, reduce_features, save_targets
from priors.weights import save_weights

CHECKPOINT_VERSION = 1
ASK_EVERY = 16  # steps after which several processes agree on whether to stop
REHEARSED_TEST_IMAGES = 8  # of which a rehearsal evaluates, however many there are


@dataclass(frozen=True)
class Watch:
    """How a cell talks to whoever runs it.

    Args:
        step: called with (step, steps, loss) after each step.
        event: called with an event's name and facts: the log of the cell.
        stop: tells whether the user wants to stop.
    """

    step: Callable[[int, int, float], None]
    event: Callable[[str, dict[str, Any]], None]
    stop: Callable[[], bool]


def run_cell(task: Task, places: Places, device: torch.device, workers: int, watch: Watch) -> Record:
    """Run one cell and return its record; goes on from the cell's checkpoint where there is one.

    Of several processes, the record of the first is whole. Raises Interrupted once a checkpoint is written when
    `watch.stop()` says so, TrainingError when the loss is not finite, UserError when an input is missing or damaged.
    """
    cell = task.cell
    assert task.inputs is not None
    clock = Clock(device)
    reset_peak_memory(device)
    with first_then_others():
        data = load_dataset(cell.dataset, places)
    data = part_of(data, cell, REHEARSED_TEST_IMAGES if places.rehearsal else None)
    size = image_size(cell, places)
    train, test = (open_source(split, size, device, workers) for split in (data.train, data.test))
    steps = total_steps(cell, len(data.train))
    order = Order(len(data.train), cell.budget, cell.protocol.batch_size, cell.seed)
    with first_then_others():
        targets, cached = _targets(task, train, size, places, clock, watch) if task.prior else (None, False)
    target_dim = targets.values.shape[1] if targets else None
    method = build_method(cell, size, target_dim, order.steps_per_epoch, places.rehearsal)
    synchronise_batch_norm(method, device)
    method.to(device).to(memory_format=torch.channels_last)
    values = targets.values.to(device) if targets else None
    if values is not None and cell.rela and cell.rela.shuffle:
        shuffled = torch.randperm(len(values), generator=generator(cell.seed, "shuffle"))
        values = values.permuted(shuffled) if isinstance(values, Mapped) else values[shuffled.to(device)]
    trainer = Trainer(method, train, order, values, cell.protocol, clock)

    checkpoint = checkpoint_path(places, task.id)
    with first_then_others():
        curve = _resume(checkpoint, task.id, trainer, clock)
    if cell.flops_of:
        with clock.phase("other"):
            steps = _matched_steps(task, trainer, places)
    watch.event("resume" if trainer.step else "start", {"step": trainer.step, "steps": steps})
    due = Every(CHECKPOINT_SECONDS)
    ask_every = 1 if world() == 1 else ASK_EVERY

    def save() -> None:
        if not is_first():
            return
        with clock.phase("other"):
            state = {
                "version": CHECKPOINT_VERSION,
                "id": task.id,
                "seconds": clock.read(),
                "wall": clock.wall,
                "curve": [point.model_dump() for point in curve],
                "trainer": trainer.state(),
            }
            with atomic_write(checkpoint) as file:
                torch.save(state, file)
        watch.event("checkpoint", {"step": trainer.step})

    def after_step() -> None:
        watch.step(trainer.step, steps, trainer.loss)
        if trainer.step % ask_every == 0 and any_of(watch.stop()):
            save()
            raise Interrupted
        if due():
            save()

    evaluated = {point.step for point in curve}
    for until in evaluation_steps(cell, steps):
        if until in evaluated:
            continue
        trainer.train(until, after_step)
        if not is_first():
            continue
        with clock.phase("eval"):
            features = extract(method.backbone, train, test, size)
            linear = linear_probe(features, data.classes, cell.protocol.probe, cell.seed)
            score = Score(linear=tuple(linear), knn=knn_accuracy(features, data.classes, cell.protocol.knn))
        curve.append(
            Point(
                step=until,
                images=until * cell.protocol.batch_size,
                flops=trainer.spent.flops,
                seconds=clock.read()["train"],
                loss=trainer.loss,
                score=score,
            )
        )
        watch.event("evaluation", curve[-1].model_dump())
        if until < steps:
            save()

    if is_first() and (makes_prior(cell) or not places.rehearsal):  # gigabytes otherwise, of use to nobody
        with clock.phase("other"):
            save_weights(method.backbone, places.backbone(task.id))
    seconds = clock.read()
    return Record(
        id=task.id,
        grid=places.grid,
        status="done",
        cell=cell,
        inputs=task.inputs,
        dataset_title=places.mark + data.title,
        curve=tuple(curve),
        switch_step=method.switch_step if isinstance(method, ReLA) else None,
        ledger=Ledger(
            steps=trainer.step,
            images=trainer.step * cell.protocol.batch_size,
            flops=trainer.spent.flops,
            seconds=seconds,
            wall_seconds=clock.wall,
            peak_memory_bytes=peak_memory(device),
            targets=TargetCost(**asdict(targets.cost), empty=targets.empty, cached=cached) if targets else None,
            flops_not_counted=NOT_COUNTED,
        ),
        provenance=provenance(device),
        rehearsal=places.rehearsal,
    )


def checkpoint_path(places: Places, identifier: str) -> Path:
    """Return where a running cell's checkpoint lies."""
    return places.work(identifier) / "checkpoint.pt"


def build_method(
    cell: Cell, size: int, target_dim: int | None, steps_per_epoch: int, rehearsal: bool = False
) -> Method:
    """Return the cell's method around its backbone, with the initial weights of the cell's seed.

    The backbone's initial weights are the same for all arms of a seed. `target_dim` is the dimension of the
    targets of a cell with a prior. An adaptive phase, which takes thousands of steps, ends halfway in a rehearsal.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(cell.seed, "backbone"))
        backbone = build_backbone(cell.backbone, size)
        torch.manual_seed(derive(cell.seed, "method"))
        method = methods.get(cell.method)(backbone.module, backbone.dim, **cell.params)
        if cell.rela is None:
            return method
        assert target_dim is not None
        torch.manual_seed(derive(cell.seed, "map"))
        phase = 0.5 if rehearsal and cell.rela.phase == "adaptive" else cell.rela.phase
        length = None if phase == "adaptive" else int(phase * cell.protocol.epochs + 1e-9) * steps_per_epoch
        return ReLA(method, target_dim, length, cell.rela.train_map, cell.rela.check_every)


def part_of(data: ImageSet, cell: Cell, test_images: int | None = None) -> ImageSet:
    """Return the dataset with the part of its training images that the cell uses. Raises UserError.

    `test_images`: that many of the test images, from the start; None: all.
    """
    if test_images is not None:
        data = replace(data, test=Split(data.test.images[:test_images], data.test.labels[:test_images]))
    if cell.train_images is None:
        return data
    try:
        index = balanced_part(data.train.labels, cell.train_images)
    except ValueError as error:
        raise UserError(f"dataset {cell.dataset!r}: train_images: {error}") from error
    images = data.train.images
    chosen = [images[i] for i in index] if isinstance(images, list) else images[index]
    return replace(data, train=Split(chosen, data.train.labels[index]))


def make_targets(prior: Prior, train: Source, dim: int, size: int, device: torch.device, clock: Clock) -> Targets:
    """Return the targets that a prior makes of the training images, with their cost.

    Every image passes un-augmented through the prior in eval mode, in fp32 (ReLA-D, public code).
    """
    began = clock.read()["targets"]
    with clock.phase("targets"):
        features, flops = zip(*_features(prior, train, size, device, clock), strict=True)
        with torch.no_grad():
            values, empty = reduce_features(torch.cat(features), dim)
    seconds = clock.read()["targets"] - began
    return Targets(values.cpu(), empty, Cost(seconds, sum(flops), len(values)))


def _features(
    prior: Prior, train: Source, size: int, device: torch.device, clock: Clock, first: int = 0
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield the prior's features float32 (b, p) of the images from `first` on, and the FLOPs that each batch took."""
    model = prior.model().to(device).to(memory_format=torch.channels_last).eval()
    flops = 0
    for batch in train.plain(prior.input_size or size, prior.mean, prior.std, first):
        with torch.no_grad():
            if not flops:
                with clock.phase("other"):
                    flops = count_flops(partial(model, batch)) // len(batch)
            features = model(batch).flatten(1).float()
        yield features, flops * len(batch)


def _targets(task: Task, train: Source, size: int, places: Places, clock: Clock, watch: Watch) -> tuple[Targets, bool]:
    """Return the cell's targets and whether they were in the cache, which holds them after.

    Those of images that stream stay in their file. Raises Interrupted between two shards of them when `watch.stop()`
    says so.
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
            features = partial(_features, task.prior, train, size, clock.device, clock)
            after_shard = partial(_after_shard, watch, count)
            return cached or stream_targets(features, count, dim, path, clock, after_shard), bool(cached)
    cached = load_targets(path, count)
    if cached:
        return cached, True
    targets = make_targets(task.prior, train, dim, size, clock.device, clock)
    with clock.phase("other"):
        save_targets(targets, path)
    return targets, False


def _after_shard(watch: Watch, count: int, images: int) -> None:
    """Tell that the features of the first `images` of `count` are on disk, and stop there if the user wants to."""
    watch.event("targets", {"images": images, "of": count})
    if watch.stop():
        raise Interrupted


def _matched_steps(task: Task, trainer: Trainer, places: Places) -> int:
    """Return how many steps spend what the cell spent that this one is to match, targets included."""
    assert task.needs is not None
    other = read_record(record_path(places.records, task.needs.id))
    assert isinstance(other, Record)
    assert other.ledger is not None
    flops = other.ledger.flops_with_targets
    steps = flops // trainer.flops_per_step()
    if steps == 0:
        raise UserError(f"arm {task.cell.arm!r}: {flops:,} FLOPs, as cell {task.needs.id} took, are less than one step")
    return steps


def _resume(path: Path, identifier: str, trainer: Trainer, clock: Clock) -> list[Point]:
    """Restore trainer and clock from a checkpoint, if there is one that fits, and return its curve."""
    if not path.is_file():
        return []
    before = copy.deepcopy(trainer.state())
    try:
        state = torch.load(path, map_location=clock.device, weights_only=True)
        if state["version"] != CHECKPOINT_VERSION or state["id"] != identifier:
            return []
        curve = [Point.model_validate(point) for point in state["curve"]]
        trainer.restore(state["trainer"])
        clock.add(state["seconds"], state["wall"])
    except Exception:  # torch raises nearly anything on a damaged file
        trainer.restore(before)  # which may have taken a part of the state
        path.rename(path.with_suffix(".damaged"))
        return []
    return curve
