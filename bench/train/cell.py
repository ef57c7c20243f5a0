"""One cell, from its data to its record."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.core.distributed import (
    any_rank,
    broadcast_from_rank_zero,
    is_rank_zero,
    largest,
    rank_zero_first,
    synchronise_batch_norm,
    world_size,
)
from bench.core.errors import UserError, describe_error
from bench.core.files import remove_leftovers
from bench.core.paths import Paths
from bench.core.throttle import Throttle
from bench.data.augment import EvalView
from bench.data.images import Images, open_images
from bench.data.sampler import Sampler, evaluation_steps, total_steps
from bench.evaluate.features import extract
from bench.evaluate.references import find_or_make_references
from bench.evaluate.score import score
from bench.grid.cell import makes_prior
from bench.measure.clock import Clock
from bench.measure.flops import NOT_COUNTED
from bench.measure.memory import is_out_of_memory, memory_for, memory_in_use, reset_peak_memory
from bench.measure.provenance import provenance
from bench.models.weights import save_weights
from bench.plan.graph import Ready
from bench.store.record import Finished, Ledger, Point, References, TargetCost, finished
from bench.targets.cache import Targets
from bench.targets.make import find_or_make_targets, values_for
from bench.train.keeper import Hooks, Keeper, Limits
from bench.train.loop import Trainer
from bench.train.start import starting_backbone
from methods.build import build_method

ASK_EVERY = 16  # steps after which several processes agree on whether to stop


def run_cell(
    task: Ready, paths: Paths, device: torch.device, workers: int, hooks: Hooks, limits: Limits | None = None
) -> Finished:
    """Run one cell and return its record; goes on from the cell's checkpoint where there is one.

    Of several processes, all return the record of the first. Raises Interrupted once a checkpoint is written when
    `hooks.stop()` says so, TimedOut likewise, TrainingError when the loss is not finite, OutOfMemory, WriteError when
    the disk is full, UserError when an input is missing or damaged.
    """
    clock = Clock(device)
    reset_peak_memory(device)
    run = set_up(task, paths, clock, workers, hooks, limits or Limits())
    run.train()
    return run.record()


def set_up(task: Ready, paths: Paths, clock: Clock, workers: int, hooks: Hooks, limits: Limits) -> "CellRun":
    """Read the data, make the targets, build what is trained, and go on from the checkpoint."""
    device = clock.device
    with memory_for("reading the dataset", device), rank_zero_first():
        images = open_images(task.cell, paths, device, workers)
        keeper = Keeper(task, paths, clock, hooks, limits)
    total_steps(task.cell, len(images.train.labels))  # refuses a cell without one

    def after_shard(done: int) -> None:
        hooks.event("targets", {"images": done, "of": len(images.train.labels)})
        keeper.check("while making targets")

    with memory_for("making targets", device), rank_zero_first():
        check = partial(keeper.check, "while making targets")
        targets = find_or_make_targets(task, images.train, images.size, paths, clock, check, after_shard)
    references = None
    with memory_for("evaluating the references", device):
        if is_rank_zero() and not task.cell.validation:
            check = partial(keeper.check, "while evaluating the references")
            references = find_or_make_references(task, images, paths, clock, check)
    with memory_for("building the method", device):
        trainer = _trainer(task, paths, images, targets, keeper)
        seconds = None
        if task.cell.flops_of:
            with clock.phase("other"):
                trainer.steps = _matched_steps(task, trainer, paths)
        elif task.cell.seconds_of:
            seconds = _matched(task, paths).ledger.seconds_with_targets
    hooks.event("resume" if trainer.step else "start", {"step": trainer.step, "steps": trainer.steps})
    for step, values in keeper.values:
        hooks.track(step, values)
    if seconds is not None:
        trainer.steps = sys.maxsize  # nobody knows how many
    save_due = Throttle(limits.checkpoint_seconds)
    return CellRun(task, paths, images, targets, references, trainer, keeper, save_due, seconds)


def _trainer(task: Ready, paths: Paths, images: Images, targets: Targets | None, keeper: Keeper) -> Trainer:
    """Return a trainer that goes on from the checkpoint; a new one when there is none that fits it."""
    cell, clock = task.cell, keeper.clock
    order = Sampler(len(images.train.labels), cell.budget, cell.protocol.batch_size, cell.seed)
    target_dim = targets.values.shape[1] if targets else None

    def build() -> Trainer:
        backbone = starting_backbone(task, images.size, paths.rehearsal)
        method = build_method(cell, images.size, target_dim, order.steps_per_epoch, paths.rehearsal, backbone)
        synchronise_batch_norm(method)
        method.to(clock.device).to(memory_format=torch.channels_last)
        values = values_for(cell, targets, clock.device) if targets else None
        return Trainer(method, images.train, order, values, cell.protocol, clock)

    trainer = build()
    if keeper.state is not None:
        try:
            trainer.restore(keeper.state)
        except Exception as error:  # torch raises nearly anything on a state that does not fit
            if is_out_of_memory(error):
                raise
            keeper.discard(f"does not fit method {cell.method!r} as it is now: {describe_error(error)}")
            trainer = build()
    if keeper.state is None:
        trainer.choose(paths.rehearsal)
    keeper.state = None  # or its tensors would stay in memory
    return trainer


def _matched(task: Ready, paths: Paths) -> Finished:
    """Return the record of the cell whose cost this one is to match."""
    assert task.needs is not None
    other = finished(paths.records, task.needs.id)
    assert other is not None
    return other


def _matched_steps(task: Ready, trainer: Trainer, paths: Paths) -> int:
    """Return how many steps spend what the cell spent that this one is to match, targets included."""
    other = _matched(task, paths)
    flops = other.ledger.flops_with_targets
    steps = flops // trainer.flops_per_step()
    if steps == 0:
        raise UserError(f"arm {task.cell.arm!r}: {flops:,} FLOPs, as cell {other.id} took, are less than one step")
    return steps


@dataclass(frozen=True)
class CellRun:
    """A cell of which all is there that is trained, and that it is trained on.

    With `seconds` it ends, and is evaluated, when training has taken so many, whatever `steps` says.
    """

    task: Ready
    paths: Paths
    images: Images
    targets: Targets | None
    references: References | None
    trainer: Trainer
    keeper: Keeper
    save_due: Callable[[], bool]
    seconds: float | None = None

    def train(self) -> None:
        """Train to the end of the budget, evaluate where the protocol says, and save the backbone."""
        cell, keeper, trainer = self.task.cell, self.keeper, self.trainer
        self._check()
        evaluated = {point.step for point in keeper.curve}
        device, batch = keeper.clock.device, cell.protocol.batch_size
        before = memory_in_use(device)
        steps = self._evaluation_steps()
        for until in steps:
            if until in evaluated:
                continue
            with memory_for(f"training in batches of {batch}", device, batch, before):
                trainer.train(until, self._after_step, self._time_is_spent)
                losses = trainer.mean_losses()
            if not is_rank_zero():
                continue
            with memory_for("evaluating", device):
                keeper.curve.append(self._evaluated(losses, last=until == steps[-1]))
            keeper.hooks.event("evaluation", keeper.curve[-1].model_dump())
            keeper.note(trainer, keeper.curve[-1])
            if until < steps[-1]:
                keeper.save(trainer)
        # Of the backbones of a rehearsal and of trials, keep only those that are used: all would be gigabytes.
        kept = cell.validation is None and (cell.protocol.evaluate or not self.paths.rehearsal)
        if is_rank_zero() and (makes_prior(cell) or kept):
            self._save_backbone(self.paths.backbone(self.task.id))

    def record(self) -> Finished:
        """Return the record of the trained cell: of the first process, which alone has evaluated it, in all of them."""
        other_load = self._other_load()
        record = broadcast_from_rank_zero(self._record(other_load) if is_rank_zero() else None)
        assert record is not None
        return record

    def _record(self, other_load: float | None) -> Finished:
        return Finished(
            id=self.task.id,
            grid=self.paths.grid,
            cell=self.task.cell,
            inputs=self.task.inputs,
            dataset_title=self.paths.mark + self.images.title,
            test_images=len(self.images.judging.labels),
            curve=tuple(self.keeper.curve),
            switch_step=self.trainer.method.switch_step,
            ledger=self._ledger(other_load),
            references=self.references,
            code=self.keeper.code,
            provenance=provenance(self.keeper.clock.device),
            rehearsal=self.paths.rehearsal,
        )

    def _ledger(self, other_load: float | None) -> Ledger:
        trainer, clock, made = self.trainer, self.keeper.clock, None
        if self.targets:
            cached = self.targets.maker != self.task.id
            made = TargetCost(**self.targets.cost.model_dump(), empty=self.targets.empty, cached=cached)
        return Ledger(
            steps=trainer.step,
            images=trainer.step * self.task.cell.protocol.batch_size,
            flops=trainer.spent.flops,
            seconds=clock.read(),
            joules=clock.joules(),
            wall_seconds=clock.wall,
            peak_memory_bytes=self.keeper.peak(),
            targets=made,
            flops_not_counted=NOT_COUNTED,
            side_by_side=clock.side_by_side,
            other_load=other_load,
            skipped_steps=trainer.skipped_steps(),
        )

    def _other_load(self) -> float | None:
        """Return the largest share that other work took of training until an evaluation, in any of the processes."""
        shares = [self.keeper.clock.spent("train").other_load, *(point.other_load for point in self.keeper.curve)]
        known = [share for share in shares if share is not None]
        return largest(max(known) if len(known) == len(shares) else None)

    def _check(self) -> None:
        self.keeper.check(f"at step {self.trainer.step:,} of {self._steps_in_all():,}", self.trainer)

    def _after_step(self) -> None:
        trainer = self.trainer
        self.keeper.hooks.step(trainer.step, self._steps_in_all(), trainer.loss)
        if trainer.step % trainer.order.steps_per_epoch == 0:
            self.keeper.note(trainer)
        if world_size() == 1 or trainer.step % ASK_EVERY == 0:
            self._check()
        if self.save_due():
            self.keeper.save(trainer)

    def _evaluation_steps(self) -> list[int]:
        """Return the steps after which the cell is evaluated; where seconds decide, its end alone, whenever that is."""
        if self.seconds is not None:
            return [sys.maxsize]
        return evaluation_steps(self.task.cell, self.trainer.steps, len(self.images.train.labels))

    def _steps_in_all(self) -> int:
        """Return how many steps the cell has; where seconds decide, how many there will be at this rate."""
        step, spent = self.trainer.step, self.keeper.clock.seconds("train")
        if self.seconds is None:
            return self.trainer.steps
        return max(step, round(step * self.seconds / spent)) if spent else step

    def _time_is_spent(self) -> bool:
        """Return whether the seconds to match are spent; of several processes, as soon as they are in any."""
        if self.seconds is None or (world_size() > 1 and self.trainer.step % ASK_EVERY):
            return False
        return any_rank(self.keeper.clock.seconds("train") >= self.seconds)

    def _evaluated(self, losses: dict[str, float], last: bool) -> Point:
        """Return the point of the curve that the trainer has reached; `losses` are the mean losses until then."""
        cell, images, trainer, clock = self.task.cell, self.images, self.trainer, self.keeper.clock
        protocol = cell.protocol
        with clock.phase("eval"):
            view = EvalView(images.size, shorter=protocol.eval_resize)
            features = extract(trainer.method.backbone, images.train, images.judging, view)
            scored = score(features, images.classes, protocol, cell.seed, last and cell.validation is None)
        spent = clock.spent("train")
        return Point(
            step=trainer.step,
            images=trainer.step * protocol.batch_size,
            flops=trainer.spent.flops,
            seconds=spent.seconds,
            joules=spent.joules,
            other_load=spent.other_load,
            loss=trainer.loss,
            mean_losses=losses,
            weight_norm=trainer.weight_norm(),
            score=scored,
        )

    def _save_backbone(self, path: Path) -> None:
        self.keeper.hooks.own()
        with self.keeper.clock.phase("other"):
            remove_leftovers(path)
            save_weights(self.trainer.method.backbone, path)
