"""The contract of a method, and the registry of methods."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.errors import UserError, did_you_mean
from bench.registry import Registry
from bench.views import View

_signature: Callable[[Any], inspect.Signature] = cache(inspect.signature)  # a grid asks for each of its cells


@dataclass(frozen=True)
class Batch:
    """What a step sees of B images."""

    views: list[Tensor]  # one float tensor (B, 3, size, size) for each of the method's views, normalised
    labels: Tensor  # int64 (B,); a self-supervised method does not look
    targets: Tensor | None = None  # float32 (B, k), there in the ReLA phase


class Method(nn.Module):
    """A self-supervised algorithm around a backbone.

    A subclass sets `views` and writes `loss`; one that keeps something moving (a momentum network, a queue) does
    so in `after_step`. The harness optimises every parameter that requires a gradient and saves every parameter
    and buffer, so a frozen parameter is declared by `requires_grad_(False)` and all other state is a buffer.
    Raise `version` whenever the code changes what is learned: it is part of a cell's identity.

    Args:
        backbone: maps (B, 3, size, size) to features (B, dim).
        dim: the dimension d of the features.
        Further arguments of a subclass, with defaults, are what a grid can set under `params`.
    """

    version: ClassVar[int] = 1
    views: tuple[View, ...]

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim = dim

    @property
    def kind(self) -> str:
        """The kind of the next step: steps of one kind take the same FLOPs, which are counted once."""
        return "method"

    def loss(self, batch: Batch) -> Tensor:
        """Return the scalar loss of a batch."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Act after the optimiser's step."""

    @classmethod
    def resolved(cls, params: dict[str, Any], where: str) -> dict[str, Any]:
        """Return the parameters with this method's defaults filled in. Raises UserError on one it does not have."""
        known = {
            name: parameter.default
            for name, parameter in _signature(cls).parameters.items()
            if name not in {"backbone", "dim"}
        }
        given = dict(params)
        for name, value in params.items():
            if name not in known:
                raise UserError(f"{where}: params.{name}: no such parameter{did_you_mean(name, known)}")
            default = known[name]
            number = isinstance(default, float) and type(value) in (int, float)
            if default is not None and not number and type(value) is not type(default):
                raise UserError(f"{where}: params.{name}: {value!r} is not a {type(default).__name__}")
            if number:
                given[name] = float(value)
        return known | given


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

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Apply the copy, without gradient."""
        out: Tensor = self.module(x)
        return out

    @torch.no_grad()
    def update(self, online: nn.Module) -> None:
        """Move the copy's parameters towards those of `online`, all of them in one fused operation."""
        torch._foreach_lerp_(list(self.module.parameters()), list(online.parameters()), 1 - self.momentum)


class Queue(nn.Module):
    """The last rows that were pushed, first in, first out; it starts with random rows of length 1.

    (lightly's memory bank leaves its rows out of the state dict, so that a resumed run would begin anew.)

    Args:
        size: how many rows it holds.
        dim: the dimension of a row.
    """

    rows: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", normalize(torch.randn(size, dim)))
        self.kept: Tensor | None = None  # a batch that waits for the end of its step
        self.pushed = 0

    @property
    def full(self) -> bool:
        """Whether all random rows are gone; an empty queue never is full."""
        return 0 < len(self.rows) <= self.pushed

    def keep(self, batch: Tensor) -> None:
        """Keep a batch (B, dim) of the loss until `advance`: the gradient needs the rows as they are."""
        self.kept = batch.detach()

    def advance(self) -> None:
        """Push what was kept, if anything was: a ReLA phase has no loss of the method's."""
        if self.kept is not None:
            self.push(self.kept)
            self.kept = None

    @torch.no_grad()
    def push(self, batch: Tensor) -> None:
        """Put a batch (B, dim) in the place of the oldest rows; of a batch larger than the queue, its last rows."""
        size, count = len(self.rows), len(batch)
        first = count - min(size, count)
        if first < count:
            places = (self.pushed + torch.arange(first, count, device=batch.device)) % size
            self.rows.index_copy_(0, places, batch[first:].to(self.rows.dtype))
        self.pushed += count

    def get_extra_state(self) -> dict[str, int]:
        return {"pushed": self.pushed}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.pushed = state["pushed"]


methods: Registry[type[Method]] = Registry("method", package="methods", group="rela_bench.methods")
