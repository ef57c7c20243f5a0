"""The training loop."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bench.core.device import autocast
from bench.core.distributed import broadcast_from_rank_zero, mean, parallel, world_size
from bench.core.errors import TrainingError, UserError
from bench.core.graphs import Recorded
from bench.core.seeds import derive
from bench.data.loader import Source
from bench.data.sampler import Chosen, Sampler
from bench.grid.cell import Protocol
from bench.measure.clock import Clock
from bench.measure.flops import count_flops
from bench.targets.rows import MemmapRows
from bench.train.recipe import Teachers, optimiser_of, rate
from methods import Batch, Method, Queue, View


@dataclass
class Spent:
    """What training has spent, and on which kind of step."""

    step_flops: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """FLOPs of all steps, in all processes: each kind of step was counted once, on a real batch."""
        return sum(count * self.step_flops[kind] for kind, count in self.steps.items())


class Trainer:
    """Trains a method on a source, step by step; its state is a function of the step alone.

    `steps` are those of the cell in all, over which the recipe's schedules run.

    Args:
        method: what to train; every parameter that requires a gradient is optimised.
        source: the training images.
        order: which images a step sees.
        targets: float32 (N, k) on the device or in a file, for a method that wants them.
        protocol: recipe, precision and views.
        clock: charged with "train" for the steps and "other" for what comes between.

    Raises UserError on labels that the method cannot learn: a GPU would answer this process no more.
    """

    def __init__(
        self,
        method: Method,
        source: Source,
        order: Sampler,
        targets: Tensor | MemmapRows | None,
        protocol: Protocol,
        clock: Clock,
    ) -> None:
        self.method, self.source, self.order, self.targets = method, source, order, targets
        self.protocol, self.clock, self.device = protocol, clock, clock.device
        classes = [each.classes for each in method.modules() if isinstance(each, Method) and each.classes is not None]
        if classes and (there := int(source.labels.max()) + 1) > min(classes):
            raise UserError(f"params.classes is {min(classes)}, and the labels are of {there} classes; raise it")
        _stop_counting(method)
        self.trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self.optimiser = optimiser_of(self.trained, protocol)
        self.teachers = Teachers(method, protocol)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=protocol.precision == "fp16")
        self.step, self.steps = 0, protocol.epochs * order.steps_per_epoch
        self.kind = ""  # of step that `step_loss` was made for
        self.gradients: Callable[[Batch], Tensor]  # of such a step, left in the parameters; returns the loss
        self.chosen: Tensor | None = None  # which images the method chose, int64 on the CPU
        self.loss = float("nan")
        self.sums: dict[str, Tensor] = {}  # of the losses by kind of step since the last look, float64 on the device
        self.counts: dict[str, int] = {}
        self.spent = Spent()

    def choose(self, rehearsal: bool = False) -> None:
        """Let the method choose its images, and charge it; a `rehearsal` trains on all where it chose too few."""
        if type(self.method).choose is Method.choose:  # which needs no targets: in a file, these may be gigabytes
            return
        targets = self.targets.in_memory() if isinstance(self.targets, MemmapRows) else self.targets
        choice: list[Tensor | None] = []
        with self.clock.phase("train"):
            _seed(derive(self.order.seed, "choice"))
            flops = count_flops(lambda: choice.append(self.method.choose(self.order.count, targets)))
            chosen = broadcast_from_rank_zero(choice[0])
        if flops:
            self.spent = Spent({"choice": world_size() * flops}, {"choice": 1})
        if chosen is not None and not (rehearsal and len(chosen) < self.order.batch_size):
            self._train_on(chosen.cpu())

    def train(self, until: int, after_step: Callable[[], None], enough: Callable[[], bool] = lambda: False) -> None:
        """Take steps until `until` have been taken in all, or are `enough`, calling `after_step` after each.

        The loss is looked at once an epoch, so that nothing waits for the device in between. Raises TrainingError
        when it is not finite.
        """
        views: tuple[View, ...] = ()
        batches: Iterator[tuple[Tensor, list[Tensor]]] = iter(())
        self.method.train()
        with self.clock.phase("train"):
            over = enough()
            while self.step < until and not over:
                self.method.before_step(self.step, self.steps)
                kind = self.method.kind
                if kind != self.kind:
                    self.kind = kind
                    self.gradients = self._gradients()
                if self.method.views != views:  # at the start, and where a phase ends
                    views = self.method.views
                    steps = range(self.step, until)
                    batches = self.source.batches(self._without_blur(views), self.order, steps)
                index, images = next(batches)
                targets = self._targets(index) if self.method.wants_targets else None
                batch = Batch(images, self.source.labels[index], targets)
                if kind not in self.spent.step_flops:
                    self._count(kind, batch)
                _seed(derive(self.order.seed, "step", self.step))
                loss = self.gradients(batch)
                self._optimise()
                self.method.after_step()
                self.step += 1
                self.spent.steps[kind] = self.spent.steps.get(kind, 0) + 1
                self.sums[kind] = self.sums.get(kind, 0.0) + loss.double()
                self.counts[kind] = self.counts.get(kind, 0) + 1
                over = enough()
                if self.step % self.order.steps_per_epoch == 0 or self.step == until or over:
                    self.loss = mean(loss).item()
                    if not math.isfinite(self.loss):
                        raise TrainingError(f"the loss is {self.loss} at step {self.step}")
                after_step()

    def _optimise(self) -> None:
        """Change the weights by their gradients, as the recipe has it at this step."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.method.rate * rate(self.protocol, self.step, self.steps)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.teachers.move(self.step, self.steps)

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimiser.param_groups[0]["lr"])

    def mean_losses(self) -> dict[str, float]:
        """Return the mean loss of each kind of step since this was last called, over all processes."""
        means = {kind: mean(total / self.counts[kind]).item() for kind, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def weight_norm(self) -> float:
        """Return the L2 norm of all trained parameters together."""
        return torch.nn.utils.get_total_norm([parameter.detach() for parameter in self.trained]).item()

    def flops_per_step(self) -> int:
        """Return the FLOPs of a step of the method itself, counted on the batch of step 0."""
        if "method" not in self.spent.step_flops:
            self.method.train()
            views = self._without_blur(self.method.views)
            index, images = next(self.source.batches(views, self.order, range(1)))
            self._count("method", Batch(images, self.source.labels[index]))
        return self.spent.step_flops["method"]

    def skipped_steps(self) -> int:
        """Return how many steps changed no parameter, because their gradients in fp16 were not finite."""
        if not self.scaler.is_enabled():
            return 0
        taken = [int(state["step"]) for state in self.optimiser.state.values()]
        return self.step - max(taken, default=0)

    def state(self) -> dict[str, Any]:
        """Return the state to resume from: tensors and plain values."""
        return {
            "step": self.step,
            "loss": self.loss,
            "step_flops": self.spent.step_flops,
            "steps": self.spent.steps,
            "sums": self.sums,
            "counts": self.counts,
            "chosen": self.chosen,
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step, self.loss = state["step"], state["loss"]
        self.spent = Spent(state["step_flops"], state["steps"])
        self.sums = {kind: total.to(self.device) for kind, total in state["sums"].items()}
        self.counts = state["counts"]
        if (chosen := state.get("chosen")) is not None:  # checkpoints of before there was a choice lack it
            self._train_on(chosen.cpu())
        self.method.load_state_dict(state["method"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])

    def _train_on(self, chosen: Tensor) -> None:
        self.chosen, self.order = chosen, Chosen(self.order, chosen)

    def _targets(self, index: Tensor) -> Tensor | None:
        """Return the targets of a step's images; those in a file are found without waiting for the device's index."""
        if isinstance(self.targets, MemmapRows):
            return self.targets[self.order.own(self.step)]
        return None if self.targets is None else self.targets[index]

    def _count(self, kind: str, batch: Batch) -> None:
        """Count the FLOPs of this kind of step, on a copy: the method's own state stays as it is.

        What the method computes before and after it is a part of the step.
        """
        method = copy.deepcopy(self.method)

        def step() -> None:
            method.before_step(self.step, self.steps)
            with autocast(self.device, self.protocol.precision):
                loss = method.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            method.after_step()

        with self.clock.phase("other"):
            self.spent.step_flops[kind] = world_size() * count_flops(step)

    def _gradients(self) -> Callable[[Batch], Tensor]:
        """Return what computes the loss of a batch and its gradients, recorded where the method allows it."""
        step_loss = parallel(self._compiled(), self.device, unused=self.method.leaves_unused)
        targets = self.method.wants_targets
        queues = [each for each in self.method.modules() if isinstance(each, Queue)]

        def work(labels: Tensor, *images: Tensor) -> list[Tensor | None]:
            batch = Batch(list(images[:-1]), labels, images[-1]) if targets else Batch(list(images), labels)
            self.optimiser.zero_grad()
            with autocast(self.device, self.protocol.precision):
                loss: Tensor = step_loss(batch)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            return [loss.detach(), *(queue.kept for queue in queues)]

        recordable = self.method.recordable and self.protocol.compile is None and world_size() == 1
        call = Recorded(work, self.device) if recordable else work

        def gradients(batch: Batch) -> Tensor:
            loss, *kept = call(batch.labels, *batch.views, *([] if batch.targets is None else [batch.targets]))
            for queue, rows in zip(queues, kept, strict=True):
                queue.kept = rows  # a recorded loss makes them, and keeps them nowhere
            assert loss is not None
            return loss

        return gradients

    def _compiled(self) -> torch.nn.Module:
        """Return the method's loss, compiled where the protocol says so."""
        loss, mode = _Loss(self.method), self.protocol.compile
        if mode is None:
            return loss
        torch.compiler.reset()  # what was compiled before counts against a limit, beyond which nothing is
        return cast(torch.nn.Module, torch.compile(loss, mode=mode))

    def _without_blur(self, views: tuple[View, ...]) -> tuple[View, ...]:
        return views if self.protocol.blur else tuple(replace(view, blur=0.0) for view in views)


def _seed(seed: int) -> None:
    """Seed whatever a method may draw from, so that a step depends on nothing that was drawn before it."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _stop_counting(method: Method) -> None:
    """Hide the counter of batches, which stays in the state dict, from each batch norm that has no use for it.

    To raise it is a launch for each layer and view, of 86 in a step of BYOL with a ResNet-18.
    """
    for each in method.modules():
        if isinstance(each, _BatchNorm) and each.momentum is not None:
            vars(each)["num_batches_tracked"] = None


class _Loss(torch.nn.Module):
    """A method as a module whose forward pass is its loss, which is how gradients of several processes are averaged."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> Tensor:
        return self.method.loss(batch)
