"""The options that several verbs have."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bench.core.errors import UserError
from bench.core.paths import expanded
from bench.plan.request import split_profile

PathOption = partial(typer.Option, parser=expanded, metavar="PATH")
PathArgument = partial(typer.Argument, parser=expanded)

GRID = "a shipped grid's name or a YAML file, or GRID@PROFILE; the profile `mini` suits any grid"
GridArgument = Annotated[str | None, typer.Argument(help=GRID)]
# The grid and its profile, as scripts that were written before have them.
NamedOption = Annotated[str | None, typer.Option("--grid", hidden=True)]
ProfileOption = Annotated[str | None, typer.Option("--profile", hidden=True)]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as protocol.epochs=2; repeatable")]
RehearseOption = Annotated[bool, typer.Option("--rehearse", help="every cell in a few steps, on stand-in data")]
OnlyOption = Annotated[
    str | None, typer.Option(help="KEY=VALUE,... such as dataset=cifar10,budget=0.5; a comma in a name is part of it")
]
DataOption = Annotated[Path, PathOption("--data-root", envvar="BENCH_DATA", help="folder of datasets and priors")]
ResultsOption = Annotated[Path, PathOption("--results", help="folder of records, one below it for each grid")]
JsonOption = Annotated[bool, typer.Option("--json", help="for programs: JSON instead of a table")]
PluginOption = Annotated[list[Path] | None, PathOption("--plugin", help="Python file of a plugin; repeatable")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]


def chosen_grid(argument: str | None, option: str | None, profile: str | None) -> tuple[str, str | None]:
    """Return the grid that a command is given, and its profile. Raises UserError unless it is one of each."""
    if argument is not None and option is not None:
        raise UserError(f"{argument} --grid {option}: name one grid")
    if argument is None and option is None:
        raise UserError("name a grid, such as quickstart; `list grids` shows those that are shipped")
    grid, named = split_profile(argument or option or "")
    if named is not None and profile is not None:
        raise UserError(f"{grid}@{named} --profile {profile}: name one profile")
    return grid, profile if named is None else named
