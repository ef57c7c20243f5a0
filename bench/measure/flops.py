"""Counting floating-point operations."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

NOT_COUNTED = "batch norm, activations, pooling, losses, augmentation and the optimiser's update are not counted"


def count_flops(run: Callable[[], object]) -> int:
    """Return the FLOPs (2 per multiply-add) of the convolutions, matrix products and attentions that `run` does.

    Backward passes inside `run` are counted too. Attention is computed by its formula: torch counts nothing for the
    kernel that a CPU would choose, and more than the formula for those of a GPU, which compute parts twice.
    """
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return int(counter.get_total_flops())


def step_flops(loss: Callable[[], torch.Tensor]) -> int:
    """Return the FLOPs of one training step: the forward passes in `loss` and their backward passes."""
    return count_flops(lambda: loss().backward())  # type: ignore[no-untyped-call]
