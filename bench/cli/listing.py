"""The verb `list`: what there is by name."""

import inspect
import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli import options
from bench.cli.planning import load_plugins
from bench.core.errors import FETCH, PluginError, UserError, describe_error, did_you_mean
from bench.core.paths import Paths
from bench.core.registry import Registry

REGISTRIES = {  # by the module that has one of the name
    "methods": "methods",
    "accelerators": "methods",
    "datasets": "bench.data",
    "backbones": "bench.models.backbones",
    "executors": "bench.run.executors",
    "trackers": "bench.run.trackers",
}
PRIOR_HEAD = ("name", "px", "dim", "MB", "here", "what it is")


def list_names(
    what: Annotated[
        str, typer.Argument(help="methods, accelerators, priors, datasets, backbones, grids, executors or trackers")
    ],
    data_root: options.DataOption = Path("data"),
    plugin: options.PluginOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """List what can be named in a grid."""
    from bench.core.terminal import table_text

    load_plugins(plugin)
    rows = listing(what, data_root)
    if as_json:
        print(json.dumps([{"name": name, "text": text, **_facts(name)} for name, text in rows], indent=1))
        return
    if what == "priors":
        print(table_text(PRIOR_HEAD, [_prior_row(name, text, data_root) for name, text in rows], PRIOR_HEAD[1:4]))
        print("`prepare` downloads what is not here; licences and sources: --json")
    elif what == "methods":
        by_family = sorted((family, name, paper) for name, _ in rows for family, paper in [_origin(name)])
        print(table_text(("family", "name", "paper"), by_family))
    else:
        print(table_text(("", ""), rows))


def _origin(name: str) -> tuple[str, str]:
    """Return a method's family and its paper, as the first line of its module has it; its error where it has one."""
    from methods import methods

    try:
        method = methods.get(name)
    except PluginError as error:
        return "", str(error)
    first = (inspect.getdoc(inspect.getmodule(method)) or "").partition("\n")[0]
    return method.family, first.partition(": ")[2] or first


def _prior_row(name: str, text: str, data: Path) -> tuple[str, ...]:
    """Return a row of the table of priors."""
    from priors.catalogue import CATALOGUE

    entry = CATALOGUE.get(name)
    if entry is None:
        return name, "", "", "", "", text
    if entry.model is None:
        return name, *entry.numbers(), "", f"{entry.about}; {text.rpartition('; ')[2]}"
    return name, *entry.numbers(), "yes" if entry.path(data).is_file() else "no", entry.about


def _facts(name: str) -> dict[str, object]:
    """Return the catalogue's facts on a named prior, {} for anything else."""
    from priors.catalogue import CATALOGUE

    return asdict(CATALOGUE[name]) if name in CATALOGUE else {}


def listing(what: str, data: Path) -> list[tuple[str, str]]:
    """Return the names of a kind with a line on each. Raises UserError on an unknown kind."""
    if what == "grids":
        from bench.grid.load import GRIDS
        from bench.grid.strict_yaml import read_yaml

        texts = [(path, path.read_text(encoding="utf-8")) for path in sorted(GRIDS.glob("*.yaml"))]
        return [(path.stem, str(read_yaml(text, str(path)).get("title", ""))) for path, text in texts]
    if what == "priors":
        return _priors(data)
    if what not in REGISTRIES:
        raise UserError(f"list {what}: not a kind of name{did_you_mean(what, [*REGISTRIES, 'priors', 'grids'])}")
    registry = getattr(import_module(REGISTRIES[what]), what)
    if what == "datasets":
        return [(name, _dataset(name, data)) for name in registry]
    rows = [(name, _line(registry, name)) for name in registry]
    if what == "backbones":
        rows.append(("timm:<model>", "any model of timm, also by its bare name."))
    return rows


def _priors(data: Path) -> list[tuple[str, str]]:
    """Return the kinds of priors, then the named ones with what they are and whether their weights are here."""
    from priors import priors
    from priors.catalogue import CATALOGUE

    kinds = [(name, _line(priors, name)) for name in priors if name not in CATALOGUE]
    trained = ("<DATASET>-T", "the backbone of the BYOL cell at the full budget of the same grid, such as CF10-T.")
    named = []
    for name, entry in CATALOGUE.items():
        if entry.model is None and name in priors:
            state = f"from a plugin: {_line(priors, name)}"
        elif entry.model is None:
            state = "bring its features in a --plugin file"
        else:
            state = "ready here" if entry.path(data).is_file() else f"not in {data}; {FETCH}"
        named.append((name, f"{entry.line()}; {state}"))
    return [*kinds, trained, *named]


def _line(registry: Registry[Any], name: str) -> str:
    """Return the first line of an item's docstring, or its error."""
    try:
        return (inspect.getdoc(registry.get(name)) or "").partition("\n")[0]
    except PluginError as error:
        return str(error)


def _dataset(name: str, data: Path) -> str:
    """Return a dataset's title and whether it is here, or else what is wrong with it.

    A part of it is known as one once its images were counted.
    """
    from bench.data import cached_facts, find_dataset

    try:
        info = find_dataset(name, data)
        if not info.here(data):
            return f"{info.title}: not in {data}; {info.hint}"
        facts = cached_facts(info, Paths(data=data, results=data, grid=""))
        return f"{facts.title}: here" if facts else f"{info.title_here(data)}: here; `prepare` counts its images"
    except Exception as error:  # a plugin may raise anything
        return describe_error(error)
