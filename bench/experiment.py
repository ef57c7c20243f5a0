"""One cell, from its data to its record."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench.backbones import build_backbone
from bench.budget import evaluation_steps, total_steps
from bench.checkpoint import checkpoint_path, resume, save_checkpoint
from bench.datasets import ImageSet, Split, balanced_part, image_size, load_dataset
from bench.distributed import any_of, first_then_others, is_first, synchronise_batch_norm, world
from bench.errors import UserError
from bench.evaluate import extract, knn_accuracy, linear_probe
from bench.flops import NOT_COUNTED
from bench.meter import Clock, peak_memory, reset_peak_memory
from bench.places import Places
from bench.plan import Task
from bench.provenance import provenance
from bench.seeds import derive
from bench.source import Order, open_source
from bench.spec import Cell, makes_prior
from bench.store import Ledger, Point, Record, Score, TargetCost, read_record, record_path
from bench.targets import find_or_make_targets, values_for
from bench.train import CHECKPOINT_SECONDS, Every, Interrupted, Trainer
from methods import Method, methods
from methods.rela import ReLA
from priors.targets import Targets
from priors.weights import save_weights

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
    cell = _Running(task, places, device, workers, watch)
    cell.train()
    return cell.record()


class _Running:
    """A cell while it runs."""

    def __init__(self, task: Task, places: Places, device: torch.device, workers: int, watch: Watch) -> None:
        assert task.inputs is not None
        self.task, self.cell, self.places, self.watch = task, task.cell, places, watch
        self.clock = Clock(device)
        reset_peak_memory(device)
        with first_then_others():
            data = load_dataset(self.cell.dataset, places)
        self.data = part_of(data, self.cell, REHEARSED_TEST_IMAGES if places.rehearsal else None)
        self.size = image_size(self.cell, places)
        self.images, self.test_images = (
            open_source(split, self.size, device, workers) for split in (self.data.train, self.data.test)
        )
        self.targets: Targets | None = None
        self.cached = False
        if task.prior:
            with first_then_others():
                self.targets, self.cached = find_or_make_targets(
                    task, self.images, self.size, places, self.clock, self._after_shard
                )
        self.steps = total_steps(self.cell, len(self.data.train))
        self.trainer = self._trainer()
        self.checkpoint = checkpoint_path(places, task.id)
        with first_then_others():
            self.curve = resume(self.checkpoint, task.id, self.trainer, self.clock)
        if self.cell.flops_of:
            with self.clock.phase("other"):
                self.steps = _matched_steps(task, self.trainer, places)
        watch.event("resume" if self.trainer.step else "start", {"step": self.trainer.step, "steps": self.steps})
        self.due = Every(CHECKPOINT_SECONDS)
        self.ask_every = 1 if world() == 1 else ASK_EVERY

    def train(self) -> None:
        """Train to the end of the budget, evaluate where the protocol says, and save the backbone."""
        evaluated = {point.step for point in self.curve}
        for until in evaluation_steps(self.cell, self.steps):
            if until in evaluated:
                continue
            self.trainer.train(until, self._after_step)
            losses = self.trainer.mean_losses()
            if not is_first():
                continue
            self.curve.append(self._evaluated(losses))
            self.watch.event("evaluation", self.curve[-1].model_dump())
            if until < self.steps:
                self._save()
        # Of a rehearsal's backbones, only priors are of use to anybody, and all are gigabytes.
        if is_first() and (makes_prior(self.cell) or not self.places.rehearsal):
            with self.clock.phase("other"):
                save_weights(self.trainer.method.backbone, self.places.backbone(self.task.id))

    def record(self) -> Record:
        """Return the record of the trained cell."""
        assert self.task.inputs is not None
        method, targets = self.trainer.method, self.targets
        return Record(
            id=self.task.id,
            grid=self.places.grid,
            status="done",
            cell=self.cell,
            inputs=self.task.inputs,
            dataset_title=self.places.mark + self.data.title,
            curve=tuple(self.curve),
            switch_step=method.switch_step if isinstance(method, ReLA) else None,
            ledger=Ledger(
                steps=self.trainer.step,
                images=self.trainer.step * self.cell.protocol.batch_size,
                flops=self.trainer.spent.flops,
                seconds=self.clock.read(),
                joules=self.clock.joules(),
                wall_seconds=self.clock.wall,
                peak_memory_bytes=peak_memory(self.clock.device),
                targets=TargetCost(**asdict(targets.cost), empty=targets.empty, cached=self.cached)
                if targets
                else None,
                flops_not_counted=NOT_COUNTED,
            ),
            provenance=provenance(self.clock.device),
            rehearsal=self.places.rehearsal,
        )

    def _trainer(self) -> Trainer:
        cell, device, targets = self.cell, self.clock.device, self.targets
        order = Order(len(self.data.train), cell.budget, cell.protocol.batch_size, cell.seed)
        target_dim = targets.values.shape[1] if targets else None
        method = build_method(cell, self.size, target_dim, order.steps_per_epoch, self.places.rehearsal)
        synchronise_batch_norm(method, device)
        method.to(device).to(memory_format=torch.channels_last)
        values = values_for(cell, targets, device) if targets else None
        return Trainer(method, self.images, order, values, cell.protocol, self.clock)

    def _after_shard(self, images: int) -> None:
        """Tell that the features of the first `images` are on disk, and stop there if the user wants to."""
        self.watch.event("targets", {"images": images, "of": len(self.images.labels)})
        if self.watch.stop():
            raise Interrupted

    def _after_step(self) -> None:
        self.watch.step(self.trainer.step, self.steps, self.trainer.loss)
        if self.trainer.step % self.ask_every == 0 and any_of(self.watch.stop()):
            self._save()
            raise Interrupted
        if self.due():
            self._save()

    def _save(self) -> None:
        if is_first():
            with self.clock.phase("other"):
                save_checkpoint(self.checkpoint, self.task.id, self.trainer, self.clock, self.curve)
            self.watch.event("checkpoint", {"step": self.trainer.step})

    def _evaluated(self, losses: dict[str, float]) -> Point:
        """Return the point of the curve that the trainer has reached; `losses` are the mean losses until then."""
        cell, trainer = self.cell, self.trainer
        with self.clock.phase("eval"):
            features = extract(trainer.method.backbone, self.images, self.test_images, self.size)
            linear, *further = map(tuple, linear_probe(features, self.data.classes, cell.protocol.probe, cell.seed))
            knn = knn_accuracy(features, self.data.classes, cell.protocol.knn)
        return Point(
            step=trainer.step,
            images=trainer.step * cell.protocol.batch_size,
            flops=trainer.spent.flops,
            seconds=self.clock.read()["train"],
            joules=self.clock.spent("train").joules,
            loss=trainer.loss,
            mean_losses=losses,
            weight_norm=trainer.weight_norm(),
            score=Score(linear=linear, knn=knn, further_probes=tuple(further)),
        )


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
