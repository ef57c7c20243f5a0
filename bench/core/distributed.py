"""Several processes that train one cell together, each on its share of every batch (`run --gpus-per-cell`).

Rank zero alone makes targets, evaluates and writes; the others wait for it. A batch, its order and its augmentation are
those of one process, so that the number of processes changes no result beyond the rounding of sums.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightly.utils import dist as lightly_dist
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from bench.core.device import find_device
from bench.core.environment import in_torchrun
from bench.core.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # rank zero may evaluate for hours while the others wait


def start(name: str) -> None:
    """Join the processes that `torchrun` started, if it did, on the device that `--device` names."""
    if not in_torchrun():
        return
    device = find_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Gloo beside NCCL: what the host has to know never waits for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)


def stop() -> None:
    """Leave the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def world_size() -> int:
    """Return how many processes train a cell together."""
    return int(lightly_dist.world_size())


def is_rank_zero() -> bool:
    """Return whether this process is the one that writes, as any is that trains a cell alone."""
    return bool(lightly_dist.rank() == 0)


def rank_slice(count: int) -> slice:
    """Return the rows of a batch of `count` that are this process's; all in one process. Raises UserError."""
    processes, rank = world_size(), lightly_dist.rank()
    if count % processes:
        raise UserError(
            f"a batch of {count} is not a multiple of {processes} processes; change protocol.batch_size or their number"
        )
    size = count // processes
    return slice(rank * size, (rank + 1) * size)


def gather(rows: Tensor) -> Tensor:
    """Return the rows of all processes in the order of the global batch, with gradient; in one process `rows`.

    A loss that compares samples with one another gathers what it compares; each process then has the loss of the
    global batch, and the harness averages gradients over processes.
    """
    return torch.cat(lightly_dist.gather(rows)) if world_size() > 1 else rows


def mean(value: Tensor) -> Tensor:
    """Return a value's mean over processes, without gradient."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / world_size()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set in any process; all of them ask at the same time."""
    return bool(largest(float(flag)))


def largest(value: float | None) -> float | None:
    """Return the largest value of all processes, None if any of them has none; all of them ask at the same time."""
    if world_size() == 1:
        return value
    values = torch.tensor(math.inf if value is None else value, dtype=torch.float64)
    distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
    return None if values.isinf() else values.item()


def broadcast_from_rank_zero(value: T) -> T:
    """Return rank zero's value in all processes, which ask at the same time."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def wait() -> None:
    """Wait for all processes, on the host."""
    any_rank(False)


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let rank zero through, and the others after it: they read what it has made."""
    if not is_rank_zero():
        wait()
    yield
    if is_rank_zero():
        wait()


def parallel(module: nn.Module, device: torch.device, unused: bool) -> nn.Module:
    """Return a module whose backward pass averages gradients over processes; the same one in one process.

    `unused` tells that some parameters get no gradient in some steps.
    """
    if world_size() == 1:
        return module
    with warnings.catch_warnings():
        # Its successor is not in the oldest torch that is supported. Buffers are equal as it is, and a queue is large.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=unused,
            gradient_as_bucket_view=True,
        )


def synchronise_batch_norm(module: nn.Module) -> None:
    """Let every batch norm inside the module take its statistics over all processes; nothing changes in one process."""
    if world_size() > 1:
        for each in module.modules():
            if isinstance(each, _BatchNorm):
                each.__class__ = GlobalBatchNorm


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the batch of all processes, of which each has as many rows.

    (torch's `SyncBatchNorm` is for GPUs alone, and waits in each forward pass to find processes without rows.)
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            plain: Tensor = super().forward(input)
            return plain
        normalised: Tensor
        normalised, mean, variance = _Normalised.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.momentum is not None
            count = _count(input)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        return normalised


def _count(input: Tensor) -> int:
    """Return how many values of a channel all processes have together."""
    return world_size() * input.numel() // input.shape[1]


class _Normalised(Function):
    """Batch norm by torch's kernels for known statistics, which are taken, and given their gradient, over processes."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows normalised, and each channel's mean and (biased) variance over all processes."""
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        own = torch.stack(torch.var_mean(values, [d for d in range(input.dim()) if d != 1], correction=0))
        variances, means = gather(own[None]).unbind(1)  # Chan, Golub, LeVeque 1983
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(input, torch.ones_like(mean) if weight is None else weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return batch_norm(input, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; those of weight and bias are this process's alone, as every parameter's are.

        With y = (x - mean) / deviation, that of the input is scale (g - <g> - y <g y>), <> the mean over processes.
        """
        grad, (input, weight, mean, variance) = grads[0], ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, input, weight, mean, variance, mean, inverse, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([of_weight, of_bias])
        if world_size() > 1:
            distributed.all_reduce(sums)
        along, level = sums / _count(input)
        scale, shape = weight * inverse, [-1 if d == 1 else 1 for d in range(input.dim())]
        slope = -scale * inverse * along
        offset = -scale * level - slope * mean
        first = torch.addcmul(offset.view(shape), grad, scale.view(shape))
        of_input = torch.addcmul(first, input, slope.view(shape)).to(input.dtype)
        affine = ctx.needs_input_grad[1]
        return of_input, of_weight if affine else None, of_bias if affine else None, None
