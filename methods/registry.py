"""The registries of methods and accelerators: what a grid can set of each, and the sentence on a broken one."""

import inspect
import json
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np
from torch import nn

from bench.core.errors import PluginError, UserError, did_you_mean
from bench.core.registry import Registry
from bench.data.augment import View
from bench.grid.controls import Accelerate
from methods.accelerator import Accelerator
from methods.base import Method

M = TypeVar("M", bound=Method)


class Methods(Registry[type[M]], Generic[M]):
    """Methods or accelerators by name; PluginError is raised of one that breaks the contract.

    `first`: what they are built around. `key`: where a grid sets their parameters.
    """

    def __init__(self, kind: str, contract: type[M], first: tuple[str, str], key: str) -> None:
        super().__init__(kind, package="methods", group=f"rela_bench.{kind}s", contract=contract)
        self.first, self.key = first, key

    def resolved(self, name: str, params: dict[str, Any], where: str) -> dict[str, Any]:
        """Return the parameters with the method's defaults filled in, as a record holds them.

        Raises UserError, which begins with `where`, on one that the method does not have.
        """
        known, given = _defaults(self.get(name), self), {}
        for key, value in params.items():
            if key not in known:
                raise UserError(f"{where}: {self.key}.{key}: no such parameter{did_you_mean(key, known)}")
            given[key] = _in_type_of(known[key], value)
            if known[key] is not None and type(given[key]) is not type(known[key]):
                raise UserError(f"{where}: {self.key}.{key}: {value!r} is not a {type(known[key]).__name__}")
        return known | given

    def build(self, name: str, inner: nn.Module, dim: int | None, params: dict[str, Any]) -> M:
        """Return the method around a backbone, or the accelerator around a method, with a grid's parameters.

        A list for one whose default is a tuple becomes a tuple.
        """
        kind, resolved = self.get(name), self.resolved(name, params, name)
        defaults = {key: parameter.default for key, parameter in inspect.signature(kind).parameters.items()}
        given = {key: resolved[key] for key in params}
        tuples = {key: _as_tuple(value) for key, value in given.items() if isinstance(defaults[key], tuple)}
        method = kind(inner, dim, **given | tuples)  # type: ignore[arg-type]
        views = getattr(method, "views", None)
        if not (isinstance(views, tuple | list) and views and all(isinstance(view, View) for view in views)):
            raise _broken(kind, self, f"views is {views!r:.80}; make it a tuple of methods.View, one for each view")
        return method


methods: Methods[Method] = Methods("method", Method, ("backbone", "dim"), "params")
accelerators: Methods[Accelerator] = Methods("accelerator", Accelerator, ("method", "target_dim"), "accelerate")


def check_prior(choice: Accelerate, with_rela: bool) -> None:
    """Raise UserError when an accelerator lacks the prior that it needs, or is given one that it has no use for.

    `with_rela`: its arm has `rela`, too, and an arm has one prior.
    """
    if accelerators.get(choice.name).needs_prior == bool(choice.prior):
        return
    if choice.prior:
        raise UserError(f"accelerator {choice.name!r} has no use for a prior: leave out accelerate.prior")
    fix = "name it as accelerate.prior" + (", and leave out rela" if with_rela else "")
    raise UserError(f"accelerator {choice.name!r} needs a prior's targets: {fix}")


def _defaults_of(method: type[Method], known: Methods[Any]) -> dict[str, Any]:
    """Return what a grid can set of a method, with the defaults as a record holds them. Raises PluginError."""
    if type(method.version) is not int:
        raise _broken(method, known, f"version is {method.version!r:.80}; make it a whole number")
    parameters = inspect.signature(method).parameters
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _broken(
                method, known, f"parameter {str(parameter)!r} has no names to set: name each one, with a default"
            )
    if (*parameters,)[:2] != known.first:
        raise _broken(method, known, f"its first two parameters must be {' and '.join(known.first)}")
    return {name: _default(method, known, parameters[name]) for name in [*parameters][2:]}


_defaults: Callable[[Any, Any], dict[str, Any]] = cache(_defaults_of)  # a grid asks for each of its cells


def _default(method: type[Method], known: Methods[Any], parameter: inspect.Parameter) -> Any:
    """Return a parameter's default as JSON has it: a numpy scalar is its number, a tuple is a list."""
    named = f"parameter {parameter.name!r}"
    if known.key == "accelerate" and parameter.name in Accelerate.model_fields:
        raise _broken(method, known, f"{named} is a key of every accelerator: call it something else")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise _broken(method, known, f"{named} cannot be set by its name: remove the / behind it")
    if parameter.default is parameter.empty:
        raise _broken(method, known, f"{named} has no default: give it one, which a grid's params then replace")
    try:
        text = json.dumps(parameter.default, allow_nan=False, ensure_ascii=False, default=np.generic.item)
        return json.loads(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise _broken(
            method,
            known,
            f"{named} has the default {parameter.default!r:.80}, which a grid cannot hold: make it a finite number,"
            " a word, True, False, None, or a list, and convert it in __init__",
        ) from error


def _broken(method: type[Method], known: Methods[Any], how: str) -> PluginError:
    return PluginError(f"{known.describe(method)}: {how}")


def _in_type_of(default: Any, value: Any) -> Any:
    """Return a grid's value with floats where a default has them, so that 1 and 1.0 are one setting."""
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, list) and isinstance(value, list) and default:
        return [_in_type_of(default[0], each) for each in value]
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
