"""The options that several verbs have."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bench.core.errors import UserError
from bench.core.paths import expanded

PathOption = partial(typer.Option, parser=expanded, metavar="PATH")
PathArgument = partial(typer.Argument, parser=expanded)

GridArgument = Annotated[str | None, typer.Argument(help="a shipped grid's name, or the path of a YAML file")]
SameOption = Annotated[str | None, typer.Option("--grid", hidden=True)]  # the same, as it was said before
ProfileOption = Annotated[str | None, typer.Option(help="overrides of the grid's profiles; `mini` suits any grid")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as protocol.epochs=2; repeatable")]
RehearseOption = Annotated[bool, typer.Option("--rehearse", help="every cell in a few steps, on stand-in data")]
OnlyOption = Annotated[
    str | None, typer.Option(help="KEY=VALUE,... such as dataset=cifar10,budget=0.5; a comma in a name is part of it")
]
DataOption = Annotated[Path, PathOption("--data-root", envvar="BENCH_DATA", help="folder of datasets and priors")]
ResultsOption = Annotated[Path, PathOption("--results", help="folder of records, one below it for each grid")]
CellsOption = Annotated[bool, typer.Option("--cells", help="a line for each cell")]
JsonOption = Annotated[bool, typer.Option("--json", help="for programs: JSON instead of a table")]
PluginOption = Annotated[list[Path] | None, PathOption("--plugin", help="Python file that registers something")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]
WorkersOption = Annotated[int, typer.Option(help="processes that decode images of a set that streams", min=0)]


def chosen_grid(argument: str | None, option: str | None) -> str:
    """Return the grid that a command is given, as its argument or by `--grid`. Raises UserError unless it is one."""
    if argument is not None and option is not None:
        raise UserError(f"{argument} --grid {option}: name one grid")
    if argument is None and option is None:
        raise UserError("name a grid, such as quickstart; `list grids` shows those that are shipped")
    return argument or option or ""
