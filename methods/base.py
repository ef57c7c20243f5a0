"""The contract of a method, and the registry of methods."""

import copy
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.core.errors import PluginError, UserError, did_you_mean
from bench.core.registry import Registry
from bench.data.augment import View

_signature: Callable[[Any], inspect.Signature] = cache(inspect.signature)


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

    def __init_subclass__(cls, **more: Any) -> None:
        """Let a loss of its own be recorded only where its own class says that it can be."""
        super().__init_subclass__(**more)
        if "loss" in vars(cls) and "recordable" not in vars(cls):
            cls.recordable = False  # type: ignore[assignment, method-assign]

    @property
    def recordable(self) -> bool:
        """Whether `loss` decides, draws and keeps nothing on the host: a GPU then records it as a CUDA graph."""
        return False

    def loss(self, batch: Batch) -> Tensor:
        """Return the scalar loss of a batch."""
        raise NotImplementedError(f"{type(self).__name__} has no method `loss`")

    def after_step(self) -> None:
        """Act after the optimiser's step."""

    @classmethod
    def resolved(cls, params: dict[str, Any], where: str) -> dict[str, Any]:
        """Return the parameters with this method's defaults filled in, as a record holds them.

        Raises UserError on one that it does not have, PluginError when the method breaks the contract.
        """
        known = _defaults(cls)
        given = {}
        for name, value in params.items():
            if name not in known:
                raise UserError(f"{where}: params.{name}: no such parameter{did_you_mean(name, known)}")
            given[name] = _in_type_of(known[name], value)
            if known[name] is not None and type(given[name]) is not type(known[name]):
                raise UserError(f"{where}: params.{name}: {value!r} is not a {type(known[name]).__name__}")
        return known | given

    @classmethod
    def build(cls, backbone: nn.Module, dim: int, params: dict[str, Any]) -> "Method":
        """Return the method with a grid's parameters; a list for one whose default is a tuple becomes a tuple.

        Raises PluginError when its views are none.
        """
        resolved, parameters = cls.resolved(params, cls.__name__), _signature(cls).parameters
        given = {name: resolved[name] for name in params}
        tuples = {name: _as_tuple(given[name]) for name in given if isinstance(parameters[name].default, tuple)}
        method = cls(backbone, dim, **given | tuples)
        views = getattr(method, "views", None)
        if not (isinstance(views, tuple | list) and views and all(isinstance(view, View) for view in views)):
            raise _broken(cls, f"views is {views!r:.80}; make it a tuple of bench.data.augment.View, one for each view")
        return method


def _defaults_of(method: type[Method]) -> dict[str, Any]:
    """Return what a grid can set of a method, with the defaults as a record holds them. Raises PluginError."""
    if type(method.version) is not int:
        raise _broken(method, f"version is {method.version!r:.80}; make it a whole number")
    parameters = _signature(method).parameters
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _broken(method, f"parameter {str(parameter)!r} has no names to set: name each one, with a default")
    if [*parameters][:2] != ["backbone", "dim"]:
        raise _broken(method, "its first two parameters must be backbone and dim")
    known = {}
    for name, parameter in [*parameters.items()][2:]:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise _broken(method, f"parameter {name!r} cannot be set by its name: remove the / behind it")
        if parameter.default is parameter.empty:
            raise _broken(method, f"parameter {name!r} has no default: give it one, which a grid's params then replace")
        try:
            # As JSON: a numpy scalar is its number, a tuple is a list.
            text = json.dumps(parameter.default, allow_nan=False, ensure_ascii=False, default=np.generic.item)
            known[name] = json.loads(text.encode())
        except (TypeError, ValueError, RecursionError) as error:
            raise _broken(
                method,
                f"parameter {name!r} has the default {parameter.default!r:.80}, which a grid cannot hold: let it be a"
                " finite number, a word, True, False, None, or a list, of which __init__ makes what it needs",
            ) from error
    return known


_defaults: Callable[[Any], dict[str, Any]] = cache(_defaults_of)  # a grid asks for each of its cells


def _broken(method: type[Method], how: str) -> PluginError:
    return PluginError(f"{methods.describe(method)}: {how}")


def _in_type_of(default: Any, value: Any) -> Any:
    """Return a grid's value with floats where a default has them, so that 1 and 1.0 are one setting."""
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, list) and isinstance(value, list) and default:
        return [_in_type_of(default[0], each) for each in value]
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


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


methods: Registry[type[Method]] = Registry("method", package="methods", group="rela_bench.methods", contract=Method)
