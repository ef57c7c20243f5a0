"""The recipe at work: what optimises the weights, and how its rate and a momentum network's momentum move.

Both are functions of the step alone, over all steps of the cell: its own budget, ReLA's phase included, and nothing
begins anew where that phase ends.
"""

from collections.abc import Iterable
from typing import Any

import torch
from lightly.utils.lars import LARS
from lightly.utils.scheduler import cosine_schedule, cosine_warmup_schedule
from torch import nn

from bench.grid.cell import Recipe
from methods import Momentum


def optimiser_of(trained: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser of these parameters.

    LARS (You et al. 2017, arXiv 1708.03888) is lightly's, which scales no rate of what has no weight decay, as SimCLR
    and BYOL do; it waits for the device in each step.
    """
    own, lr, decay = list(trained), recipe.lr, recipe.weight_decay
    groups: list[dict[str, Any]] = [{"params": own}]
    if not recipe.decay_norm_and_bias:
        norm_and_bias = [each for each in own if each.ndim <= 1]
        groups = [{"params": [each for each in own if each.ndim > 1]}, {"params": norm_and_bias, "weight_decay": 0.0}]
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr, weight_decay=decay, fused=True)
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr, recipe.momentum, weight_decay=decay, fused=True)
    lars: torch.optim.Optimizer = LARS(groups, lr, recipe.momentum, weight_decay=decay)
    return lars


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step (from 0) of `steps`: rising to `lr`, then constant, or a cosine down to 0."""
    rising = round(recipe.warmup * steps)
    end = recipe.lr if recipe.schedule == "constant" else 0.0
    return float(cosine_warmup_schedule(step, steps, recipe.lr, end, rising, 0.0))


class Teachers:
    """The momentum networks of a method, whose momentum the recipe moves.

    Args:
        method: any module; those of its parts that are a `Momentum` are found.
        recipe: constant, or a cosine from the method's own momentum at the first step to 1 at the last (BYOL, 3.2).
    """

    def __init__(self, method: nn.Module, recipe: Recipe) -> None:
        moves = recipe.teacher == "cosine"
        self._found = [(each, each.momentum) for each in method.modules() if isinstance(each, Momentum) and moves]

    def move(self, step: int, steps: int) -> None:
        """Set the momentum with which the networks follow after a step (from 0) of `steps`."""
        for network, momentum in self._found:
            network.momentum = cosine_schedule(step, steps, momentum, 1.0)
