"""The registry of methods: what a grid can set of each, and the sentence on one that breaks the contract."""

import inspect
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from torch import nn

from bench.core.errors import PluginError, UserError, did_you_mean
from bench.core.registry import Registry
from bench.data.augment import View
from methods.base import Method


class Methods(Registry[type[Method]]):
    """Methods by name; in all that follows, PluginError is raised of one that breaks the contract."""

    def resolved(self, name: str, params: dict[str, Any], where: str) -> dict[str, Any]:
        """Return the parameters with the method's defaults filled in, as a record holds them.

        Raises UserError, which begins with `where`, on one that the method does not have.
        """
        known, given = _defaults(self.get(name)), {}
        for key, value in params.items():
            if key not in known:
                raise UserError(f"{where}: params.{key}: no such parameter{did_you_mean(key, known)}")
            given[key] = _in_type_of(known[key], value)
            if known[key] is not None and type(given[key]) is not type(known[key]):
                raise UserError(f"{where}: params.{key}: {value!r} is not a {type(known[key]).__name__}")
        return known | given

    def build(self, name: str, backbone: nn.Module, dim: int, params: dict[str, Any]) -> Method:
        """Return the method with a grid's parameters; a list for one whose default is a tuple becomes a tuple."""
        kind, resolved = self.get(name), self.resolved(name, params, name)
        defaults = {key: parameter.default for key, parameter in inspect.signature(kind).parameters.items()}
        given = {key: resolved[key] for key in params}
        tuples = {key: _as_tuple(value) for key, value in given.items() if isinstance(defaults[key], tuple)}
        method = kind(backbone, dim, **given | tuples)
        views = getattr(method, "views", None)
        if not (isinstance(views, tuple | list) and views and all(isinstance(view, View) for view in views)):
            raise _broken(
                kind, f"views is {views!r:.80}; make it a tuple of bench.data.augment.View, one for each view"
            )
        return method


methods = Methods("method", package="methods", group="rela_bench.methods", contract=Method)


def _defaults_of(method: type[Method]) -> dict[str, Any]:
    """Return what a grid can set of a method, with the defaults as a record holds them. Raises PluginError."""
    if type(method.version) is not int:
        raise _broken(method, f"version is {method.version!r:.80}; make it a whole number")
    parameters = inspect.signature(method).parameters
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _broken(method, f"parameter {str(parameter)!r} has no names to set: name each one, with a default")
    if [*parameters][:2] != ["backbone", "dim"]:
        raise _broken(method, "its first two parameters must be backbone and dim")
    return {name: _default(method, parameters[name]) for name in [*parameters][2:]}


_defaults: Callable[[Any], dict[str, Any]] = cache(_defaults_of)  # a grid asks for each of its cells


def _default(method: type[Method], parameter: inspect.Parameter) -> Any:
    """Return a parameter's default as JSON has it: a numpy scalar is its number, a tuple is a list."""
    named = f"parameter {parameter.name!r}"
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise _broken(method, f"{named} cannot be set by its name: remove the / behind it")
    if parameter.default is parameter.empty:
        raise _broken(method, f"{named} has no default: give it one, which a grid's params then replace")
    try:
        text = json.dumps(parameter.default, allow_nan=False, ensure_ascii=False, default=np.generic.item)
        return json.loads(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise _broken(
            method,
            f"{named} has the default {parameter.default!r:.80}, which a grid cannot hold: let it be a finite number,"
            " a word, True, False, None, or a list, of which __init__ makes what it needs",
        ) from error


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
