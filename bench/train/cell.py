"""One cell, from its data to its record."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench.core.distributed import any_rank, is_rank_zero, largest, rank_zero_first, synchronise_batch_norm, world_size
from bench.core.environment import side_by_side
from bench.core.errors import Interrupted, TimedOut, UserError, told
from bench.core.files import remove_leftovers, set_aside
from bench.core.paths import Places
from bench.core.seeds import derive
from bench.data import ImageSet, Split, balanced_part, image_size, load_dataset
from bench.data.augment import EvalView
from bench.data.loader import open_source
from bench.data.sampler import Sampler, evaluation_steps, total_steps
from bench.evaluate.features import extract
from bench.evaluate.references import Images, find_or_make_references
from bench.evaluate.score import score
from bench.grid.schema import Cell, makes_prior
from bench.measure.clock import Clock, peak_memory, reset_peak_memory
from bench.measure.flops import NOT_COUNTED
from bench.measure.memory import OutOfMemory, is_out_of_memory, memory_in_use, sentence
from bench.measure.presence import present
from bench.measure.provenance import provenance
from bench.models.backbones import initial_backbone
from bench.models.weights import save_weights
from bench.plan.graph import Ready
from bench.store.record import Finished, Ledger, Point, References, TargetCost, finished
from bench.targets.make import find_or_make_targets, values_for
from bench.targets.reduce import Targets
from bench.train.checkpoint import Checkpoint, checkpoint_path, load_checkpoint, save_checkpoint
from bench.train.loop import Every, Trainer
from methods import Method, methods
from methods.rela import ReLA

ASK_EVERY = 16  # steps after which several processes agree on whether to stop
LOOK_SECONDS = 5.0  # between two looks at what else is on the machine
REHEARSED_TEST_IMAGES = 8  # of which a rehearsal evaluates, however many there are


@dataclass(frozen=True)
class Watch:
    """How a cell talks to whoever runs it.

    Args:
        step: called with (step, steps, loss) after each step.
        event: called with an event's name and facts: the log of the cell.
        stop: tells whether the user wants to stop.
        own: called before anything is written; raises when the cell is another runner's by now.
    """

    step: Callable[[int, int, float], None]
    event: Callable[[str, dict[str, Any]], None]
    stop: Callable[[], bool]
    own: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Limits:
    """Seconds between two checkpoints, and seconds that a cell may take in all its runs together; None: any."""

    checkpoint_seconds: float = 60.0
    cell_seconds: float | None = None


def run_cell(
    task: Ready, places: Places, device: torch.device, workers: int, watch: Watch, limits: Limits | None = None
) -> Finished:
    """Run one cell and return its record; goes on from the cell's checkpoint where there is one.

    Of several processes, the record of the first is whole. Raises Interrupted once a checkpoint is written when
    `watch.stop()` says so, TimedOut likewise, TrainingError when the loss is not finite, OutOfMemory, WriteError when
    the disk is full, UserError when an input is missing or damaged.
    """
    with present(places, task.id, device) as cells:
        cell = _Running(task, places, Clock(device, cells=cells), workers, watch, limits or Limits())
        try:
            cell.set_up()
            cell.train()
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(cell.out_of_memory(error)) from error
            raise
        return cell.record()


class _Running:
    """A cell while it runs."""

    def __init__(self, task: Ready, places: Places, clock: Clock, workers: int, watch: Watch, limits: Limits) -> None:
        self.task, self.cell, self.places, self.watch, self.limits = task, task.cell, places, watch, limits
        self.clock, self.device, self.workers = clock, clock.device, workers
        self.look_due, self.company = Every(LOOK_SECONDS), side_by_side()
        self.checkpoint = checkpoint_path(places, task.id)
        self.saved: Checkpoint | None = None
        self.trainer: Trainer | None = None
        self.targets: Targets | None = None
        self.cached = False
        self.references: References | None = None
        self.doing, self.memory_before = "reading the dataset", memory_in_use(self.device)
        reset_peak_memory(self.device)

    def set_up(self) -> None:
        """Read the data, make the targets, build what is trained, and go on from the checkpoint."""
        with rank_zero_first():
            data = load_dataset(self.cell.dataset, self.places)
            self.saved = load_checkpoint(self.checkpoint, self.task.id, self.device)
        self.data = part_of(data, self.cell, REHEARSED_TEST_IMAGES if self.places.rehearsal else None)
        self.size = image_size(self.cell, self.places)
        self.images, self.test_images = (
            open_source(split, self.size, self.device, self.workers) for split in (self.data.train, self.data.test)
        )
        self.steps = total_steps(self.cell, len(self.data.train))
        self.curve = list(self.saved.curve) if self.saved else []
        if self.saved:
            self.clock.add(
                self.saved.seconds, self.saved.wall, self.saved.joules, self.saved.side_by_side, self.saved.taken
            )
        if self.task.prior:
            self.doing = "making targets"
            with rank_zero_first():
                self.targets, self.cached = find_or_make_targets(
                    self.task, self.images, self.size, self.places, self.clock, self._check, self._after_shard
                )
        self.doing = "evaluating the references"
        if is_rank_zero():
            images = Images(self.images, self.test_images, self.data.classes)
            self.references = find_or_make_references(
                self.task, images, self.size, self.places, self.clock, self._check
            )
        self.doing = "building the method"
        self.trainer = self._resumed()
        if self.cell.flops_of:
            with self.clock.phase("other"):
                self.steps = _matched_steps(self.task, self.trainer, self.places)
        step = self.trainer.step
        self.watch.event("resume" if step else "start", {"step": step, "steps": self.steps})
        self.due = Every(self.limits.checkpoint_seconds)
        self.ask_every = 1 if world_size() == 1 else ASK_EVERY

    def train(self) -> None:
        """Train to the end of the budget, evaluate where the protocol says, and save the backbone."""
        assert self.trainer
        self._check()
        evaluated = {point.step for point in self.curve}
        self.memory_before = memory_in_use(self.device)
        for until in evaluation_steps(self.cell, self.steps, len(self.data.train)):
            if until in evaluated:
                continue
            self.doing = "training"
            self.trainer.train(until, self._after_step)
            losses = self.trainer.mean_losses()
            if not is_rank_zero():
                continue
            self.doing = "evaluating"
            self.curve.append(self._evaluated(self.trainer, losses))
            self.watch.event("evaluation", self.curve[-1].model_dump())
            if until < self.steps:
                self._save()
        # Of a rehearsal's backbones, only priors are of use to anybody, and all are gigabytes.
        if is_rank_zero() and (makes_prior(self.cell) or not self.places.rehearsal):
            self.watch.own()
            with self.clock.phase("other"):
                remove_leftovers(self.places.backbone(self.task.id))
                save_weights(self.trainer.method.backbone, self.places.backbone(self.task.id))

    def record(self) -> Finished:
        """Return the record of the trained cell."""
        assert self.task.inputs
        assert self.trainer
        method, targets = self.trainer.method, self.targets
        return Finished(
            id=self.task.id,
            grid=self.places.grid,
            cell=self.cell,
            inputs=self.task.inputs,
            dataset_title=self.places.mark + self.data.title,
            test_images=len(self.data.test),
            curve=tuple(self.curve),
            switch_step=method.switch_step if isinstance(method, ReLA) else None,
            ledger=Ledger(
                steps=self.trainer.step,
                images=self.trainer.step * self.cell.protocol.batch_size,
                flops=self.trainer.spent.flops,
                seconds=self.clock.read(),
                joules=self.clock.joules(),
                wall_seconds=self.clock.wall,
                peak_memory_bytes=self._peak(),
                targets=TargetCost(**asdict(targets.cost), empty=targets.empty, cached=self.cached)
                if targets
                else None,
                flops_not_counted=NOT_COUNTED,
                side_by_side=self.clock.side_by_side,
                other_load=self._other_load(),
                skipped_steps=self.trainer.skipped_steps(),
            ),
            references=self.references,
            provenance=provenance(self.device),
            rehearsal=self.places.rehearsal,
        )

    def out_of_memory(self, error: Exception) -> str:
        """Return what to say of an error for lack of memory."""
        batch = self.cell.protocol.batch_size if self.doing == "training" else None
        doing = f"{self.doing} in batches of {batch}" if batch else self.doing
        return sentence(error, self.device, doing, batch, self.memory_before)

    def _resumed(self) -> Trainer:
        """Return a trainer that goes on from the checkpoint; a new one when there is none that fits it."""
        trainer = self._trainer()
        if not (self.saved and self.saved.trainer):
            return trainer
        try:
            trainer.restore(self.saved.trainer)
        except Exception as error:  # torch raises nearly anything on a state that does not fit
            if is_out_of_memory(error):
                raise
            if is_rank_zero():
                why = f"does not fit method {self.cell.method!r} as it is now: {told(error)}"
                set_aside(self.checkpoint, why, "stale")
            self.clock.take_away(self.saved.seconds, self.saved.wall, self.saved.joules, self.saved.taken)
            self.saved, self.curve = None, []
            return self._trainer()
        self.saved = replace(self.saved, trainer=None)  # or its tensors would stay in memory
        return trainer

    def _trainer(self) -> Trainer:
        cell, device, targets = self.cell, self.device, self.targets
        order = Sampler(len(self.data.train), cell.budget, cell.protocol.batch_size, cell.seed)
        target_dim = targets.values.shape[1] if targets else None
        method = build_method(cell, self.size, target_dim, order.steps_per_epoch, self.places.rehearsal)
        synchronise_batch_norm(method, device)
        method.to(device).to(memory_format=torch.channels_last)
        values = values_for(cell, targets, device) if targets else None
        return Trainer(method, self.images, order, values, cell.protocol, self.clock)

    def _after_shard(self, images: int) -> None:
        """Tell that the features of the first `images` are on disk, and stop there if the user wants to."""
        self.watch.event("targets", {"images": images, "of": len(self.images.labels)})
        self._check()

    def _after_step(self) -> None:
        assert self.trainer
        self.watch.step(self.trainer.step, self.steps, self.trainer.loss)
        if self.trainer.step % self.ask_every == 0:
            self._check()
        if self.due():
            self._save()

    def _check(self) -> None:
        """Save and stop when the user wants to, or when the cell has had its time.

        All processes ask at the same time once the trainer is there; before, the first one is alone.
        """
        if self.look_due():
            self.clock.look()
        if self.clock.side_by_side > self.company:
            self.company = self.clock.side_by_side
            self.watch.event("company", {"cells": self.company})
        stop, limit = self.watch.stop(), self.limits.cell_seconds
        late = limit is not None and self.clock.wall > limit
        if self.trainer:
            stop, late = any_rank(stop), any_rank(late)
        if not (stop or late):
            return
        self._save()
        if stop:
            raise Interrupted
        at = f"at step {self.trainer.step:,} of {self.steps:,}" if self.trainer else f"while {self.doing}"
        raise TimedOut(f"{self.clock.wall:,.0f} s spent, {limit:,g} s allowed, {at}; a longer limit goes on from there")

    def _save(self) -> None:
        if not is_rank_zero():
            return
        self.watch.own()
        with self.clock.phase("other"):
            earlier = self.saved.trainer if self.saved else None  # while targets are made anew
            state = self.trainer.state() if self.trainer else earlier
            here = Checkpoint(
                self.clock.read(),
                self.clock.joules(),
                self.clock.wall,
                self._peak(),
                tuple(self.curve),
                state,
                self.clock.side_by_side,
                self.clock.taken(),
            )
            save_checkpoint(self.checkpoint, self.task.id, here)
        self.watch.event("checkpoint", {"step": state["step"] if state else 0})

    def _peak(self) -> int | None:
        """Return the peak of memory in all runs of the cell."""
        now, earlier = peak_memory(self.device), self.saved.peak if self.saved else None
        return now if now is None or earlier is None else max(now, earlier)

    def _other_load(self) -> float | None:
        """Return the largest share that other work took of training until an evaluation, in any of the processes."""
        shares = [self.clock.spent("train").other_load, *(point.other_load for point in self.curve)]
        known = [share for share in shares if share is not None]
        return largest(max(known) if len(known) == len(shares) else None)

    def _evaluated(self, trainer: Trainer, losses: dict[str, float]) -> Point:
        """Return the point of the curve that the trainer has reached; `losses` are the mean losses until then."""
        cell = self.cell
        with self.clock.phase("eval"):
            view = EvalView(self.size, shorter=cell.protocol.eval_resize)
            features = extract(trainer.method.backbone, self.images, self.test_images, view)
            found = score(features, self.data.classes, cell.protocol, cell.seed, trainer.step == self.steps)
        spent = self.clock.spent("train")
        return Point(
            step=trainer.step,
            images=trainer.step * cell.protocol.batch_size,
            flops=trainer.spent.flops,
            seconds=spent.seconds,
            joules=spent.joules,
            other_load=spent.other_load,
            loss=trainer.loss,
            mean_losses=losses,
            weight_norm=trainer.weight_norm(),
            score=found,
        )


def build_method(
    cell: Cell, size: int, target_dim: int | None, steps_per_epoch: int, rehearsal: bool = False
) -> Method:
    """Return the cell's method around its backbone, with the initial weights of the cell's seed.

    The backbone's initial weights are the same for all arms of a seed. `target_dim` is the dimension of the
    targets of a cell with a prior. An adaptive phase, which takes hundreds of steps, ends halfway in a rehearsal.
    """
    with torch.random.fork_rng(devices=[]):
        backbone = initial_backbone(cell.backbone, size, cell.seed)
        torch.manual_seed(derive(cell.seed, "method"))
        method = methods.get(cell.method).build(backbone.module, backbone.dim, cell.params)
        if cell.rela is None:
            return method
        assert target_dim is not None
        torch.manual_seed(derive(cell.seed, "map"))
        phase = 0.5 if rehearsal and cell.rela.phase == "adaptive" else cell.rela.phase
        length = None if phase == "adaptive" else int(phase * cell.protocol.epochs + 1e-9) * steps_per_epoch
        return ReLA(method, target_dim, length, cell.rela.train_map, cell.rela.check_every)


def part_of(data: ImageSet, cell: Cell, test_images: int | None = None) -> ImageSet:
    """Return the dataset with the part of its training images that the cell uses.

    `test_images`: that many of the test images, from the start; None: all.
    """
    if test_images is not None:
        data = replace(data, test=Split(data.test.images[:test_images], data.test.labels[:test_images]))
    if cell.train_images is None:
        return data
    index = balanced_part(data.train.labels, cell.train_images)
    return replace(data, train=Split(data.train.images[index], data.train.labels[index]))


def _matched_steps(task: Ready, trainer: Trainer, places: Places) -> int:
    """Return how many steps spend what the cell spent that this one is to match, targets included."""
    assert task.needs is not None
    other = finished(places.records, task.needs.id)
    assert other is not None
    flops = other.ledger.flops_with_targets
    steps = flops // trainer.flops_per_step()
    if steps == 0:
        raise UserError(f"arm {task.cell.arm!r}: {flops:,} FLOPs, as cell {task.needs.id} took, are less than one step")
    return steps
