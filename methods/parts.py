"""Parts of methods: a momentum network, a queue of rows, local views, squares, assignments, clusters, draws."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.core.distributed import gather, rank_slice, world_size
from bench.data.resample import send


class Momentum(nn.Module):
    """A copy of modules that follows them as an exponential moving average of their parameters.

    The copy's buffers (batch-norm statistics) are its own, as in the public code of BYOL in lightly. Call it like
    the module it copies.

    Args:
        online: the module to follow.
        momentum: m of theta' <- m theta' + (1 - m) theta (BYOL, equation 1).
    """

    def __init__(self, online: nn.Module, momentum: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(online).requires_grad_(False)
        self.momentum = momentum
        self._online = (online,)  # in a tuple: it is no part of the copy

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Apply the copy, without gradient."""
        out: Tensor = self.module(x)
        return out

    @torch.no_grad()
    def update(self, online: nn.Module) -> None:
        """Move the copy's parameters towards those of `online`, all of them in one fused operation."""
        torch._foreach_lerp_(list(self.module.parameters()), list(online.parameters()), 1 - self.momentum)

    def advance(self) -> None:
        """Follow, after a step."""
        self.update(*self._online)


class Queue(nn.Module):
    """The last rows that were pushed, first in, first out; it starts with random rows of length 1.

    (lightly's memory bank leaves its rows out of the state dict, so that a resumed run would begin anew. Batch norm is
    over the batch of all processes, so that there is nothing for a shuffled one, as MoCo's, to hide.)

    Args:
        size: how many rows it holds.
        dim: the dimension of a row.
        after: how many rows have to be pushed before it is `ready`, if these are more than it holds.
    """

    rows: Tensor

    def __init__(self, size: int, dim: int, after: int = 0) -> None:
        super().__init__()
        self.register_buffer("rows", normalize(torch.randn(size, dim)))
        self.kept: Tensor | None = None  # a batch that waits for the end of its step
        self.after = after
        self._count(0)

    def _count(self, pushed: int) -> None:
        """Say how many rows were pushed, and whether all random ones are gone, as they never are of an empty queue.

        A loss that looked at the number would be compiled anew in each step.
        """
        self.pushed, self.ready = pushed, 0 < len(self.rows) <= pushed >= self.after

    def keep(self, batch: Tensor) -> None:
        """Keep a batch (B, dim) of the loss until `advance`: the gradient needs the rows as they are."""
        self.kept = batch.detach()

    def advance(self) -> None:
        """Push what was kept, if anything was: a step on targets calls no loss of the method."""
        if self.kept is not None:
            self.push(self.kept)
            self.kept = None

    @torch.no_grad()
    def push(self, batch: Tensor) -> None:
        """Put a batch (B, dim) in the place of the oldest rows; of a batch larger than the queue, its last rows."""
        size, count = len(self.rows), len(batch)
        first = count - min(size, count)
        if first < count:
            slots = (self.pushed + torch.arange(first, count, device=batch.device)) % size
            self.rows.index_copy_(0, slots, batch[first:].to(self.rows.dtype))
        self._count(self.pushed + count)

    def get_extra_state(self) -> dict[str, int]:
        return {"pushed": self.pushed}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self._count(state["pushed"])


def of_each(network: Callable[[Tensor], Tensor], views: list[Tensor]) -> list[Tensor]:
    """Return what a network makes of each view (B, 3, h, w): of two global ones by themselves, of local ones together.

    Local views, which are of one size, thus share the statistics of a batch norm, as in the public code of SwAV.
    """
    local = network(torch.cat(views[2:])).chunk(len(views) - 2) if views[2:] else ()
    return [*map(network, views[:2]), *local]


def squares(z: Tensor) -> Tensor:
    """Return the sum of the squared entries of Z^T Z for rows Z (B, p); it is that of Z Z^T, made if smaller."""
    return (z @ z.T if len(z) < z.shape[1] else z.T @ z).square().sum()


@torch.no_grad()
def balanced(scores: Tensor, epsilon: float) -> Tensor:
    """Return assignments (B, K) of scores (B, K), balanced over the K by three Sinkhorn iterations.

    The batch is that of all processes. `epsilon`: a temperature, as in SwAV (section 3.1).
    """
    from lightly.loss.swav_loss import sinkhorn  # imports all of lightly's losses

    whole = gather(scores)
    assigned: Tensor = sinkhorn(whole, epsilon=epsilon)[rank_slice(len(whole))]
    return assigned


def clusters(rows: Tensor, count: int, passes: int = 100) -> Tensor:
    """Return each row's cluster, int64 (n,), by Lloyd's algorithm on (n, k) from `count` random rows, until none moves.

    A centre without rows stays where it is.
    """
    centres, own = rows[torch.randperm(len(rows))[:count].to(rows.device)], torch.empty(0, device=rows.device)
    for _ in range(passes):
        before, own = own, torch.addmm(centres.square().sum(dim=1), rows, centres.T, alpha=-2).argmin(dim=1)
        if torch.equal(before, own):
            break
        members = (own == torch.arange(len(centres), device=rows.device)[:, None]).to(rows)
        sizes = members.sum(dim=1, keepdim=True)
        centres = torch.where(sizes > 0, members @ rows / sizes.clamp(min=1), centres)
    return own


def uniform(images: Tensor, *shape: int) -> Tensor:
    """Return uniform draws in [0, 1), float32 (B, *shape), for each of this process's images (B, ...), beside them.

    An image gets the draws that it would get in a single process, and on any device.
    """
    count = len(images) * world_size()
    return send(torch.rand(count, *shape)[rank_slice(count)], images.device)
