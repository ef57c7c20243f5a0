"""How many steps and images a share of the full cost is (paper, protocol)."""

import math

import torch
from torch import Tensor

from bench.core.distributed import rank_slice
from bench.core.errors import UserError
from bench.core.seeds import generator
from bench.grid.cell import Cell


def images_per_epoch(count: int, budget: float) -> int:
    """Return the number of images in an epoch: the share `budget` of `count`, rounded down."""
    return math.floor(count * budget + 1e-9)


def steps_per_epoch(count: int, budget: float, batch_size: int) -> int:
    """Return the number of full batches in an epoch; the last, short one is dropped."""
    return images_per_epoch(count, budget) // batch_size


def total_steps(cell: Cell, count: int) -> int:
    """Return the steps of a cell on a training set of `count` images. Raises UserError when there are none."""
    steps = steps_per_epoch(count, cell.budget, cell.protocol.batch_size)
    if steps == 0:
        raise UserError(
            f"{cell.dataset}: budget {cell.budget:g} of {count:,} training images is less than one batch of"
            f" {cell.protocol.batch_size}; raise the budget or lower protocol.batch_size"
        )
    return cell.protocol.epochs * steps


def epoch_indices(count: int, budget: float, epoch: int, seed: int) -> Tensor:
    """Return a fresh random share of the training set in random order: int64 (images_per_epoch,).

    A prefix of the epoch's one permutation, so that all arms and budgets of a seed see the same order.
    """
    order = torch.randperm(count, generator=generator(seed, "order", epoch))
    return order[: images_per_epoch(count, budget)]


def evaluation_steps(cell: Cell, steps: int, count: int) -> list[int]:
    """Return the steps after which the cell is evaluated, the last of its `steps` among them.

    Those of `protocol.evaluations` are the same for all arms and budgets on a training set of `count` images: a
    geometric schedule from the end of the full budget, as far as the cell gets.
    """
    full = total_steps(cell.model_copy(update={"budget": 1.0}), count)
    shared = [full / 2**halvings for halvings in range(cell.protocol.evaluations or 0)]
    own = [share * steps for share in (*cell.protocol.evaluate_at, 1.0)]
    return sorted({max(1, math.ceil(step - 1e-9)) for step in (*own, *shared) if step <= steps})


class Sampler:
    """Which images each step of a cell sees: a function of the seed, the budget and the step alone."""

    def __init__(self, count: int, budget: float, batch_size: int, seed: int) -> None:
        self.count, self.budget, self.batch_size, self.seed = count, budget, batch_size, seed
        self.steps_per_epoch = steps_per_epoch(count, budget, batch_size)
        self._epoch, self._indices = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Return the indices int64 (batch_size,) of a step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._indices = epoch, epoch_indices(self.count, self.budget, epoch, self.seed)
        return self._indices[batch * self.batch_size : (batch + 1) * self.batch_size]

    def own(self, step: int) -> Tensor:
        """Return those of a step's indices that are this process's share; they are on the CPU."""
        return self(step)[rank_slice(self.batch_size)]


class Chosen(Sampler):
    """The steps of a sampler, as many in an epoch, on batches of some of its images: int64 (n,).

    Raises UserError when they are less than one batch.
    """

    def __init__(self, whole: Sampler, images: Tensor) -> None:
        super().__init__(whole.count, whole.budget, whole.batch_size, whole.seed)
        if len(images) < self.batch_size:
            raise UserError(f"{len(images):,} chosen images are less than one batch of {self.batch_size}; choose more")
        self.part = Part(images, self.batch_size, self.seed)

    def __call__(self, step: int) -> Tensor:
        return self.part(step)


class Part(Sampler):
    """Batches of some of the training images, each once in an epoch; a last, short batch is dropped."""

    def __init__(self, part: Tensor, batch_size: int, seed: int) -> None:
        super().__init__(len(part), 1.0, batch_size, seed)
        self.part = part

    def __call__(self, step: int) -> Tensor:
        return self.part[super().__call__(step)]
