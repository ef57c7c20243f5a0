"""The verb `report`."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import PathOption, PluginOption, ResultsOption, SetOption
from bench.cli.planning import load_plugins, toy_of
from bench.core.errors import UserError
from bench.plan.request import Request, split_profile

if TYPE_CHECKING:
    from bench.grid.schema import Grid
    from bench.toy.study import ToyGrid


def report(
    grid: Annotated[
        str | None,
        typer.Argument(help="a grid, as its folder of records is named; without one, every grid with records"),
    ] = None,
    settings: SetOption = None,
    results: ResultsOption = Path("results"),
    out: Annotated[Path, PathOption("--reports", help="folder to write to")] = Path("reports"),
    formats: Annotated[
        str | None, typer.Option("--format", help="some of md,html,latex,csv,parquet,tensorboard; else the first four")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Make tables and figures from records; trains nothing. Exit code 1: something was left out.

    GRID may have a profile and a rehearsal behind it: cifar_small@mini, grid.yaml@mini@rehearsal.
    """
    load_plugins(plugin)
    words = [word.strip() for word in formats.split(",")] if formats is not None else None
    asked = Request(grid or "quickstart", None, tuple(settings or ()), tuple(plugin or ()), results=results)
    write = _write_all if grid is None else _write
    if not write(asked, out, words):
        raise typer.Exit(1)


def _write_all(asked: Request, out: Path, formats: list[str] | None) -> bool:
    """Write the reports of all grids that have records, and return whether none was left out and all is drawn."""
    from bench.store.record import record_files

    there = asked.results.iterdir() if asked.results.exists() else ()
    names = sorted(path.name for path in there if path.is_dir() and record_files(path))
    if not names:
        raise UserError(f"--results {asked.results}: no records there; `{asked.command('run')}` makes some")
    complete = True
    for name in names:
        try:
            complete = _write(replace(asked, grid=name), out, formats) and complete
        except UserError as error:
            complete = False
            print(
                f"{asked.results / name}: left out: {error}; where its grid is a file, or was run with --set or"
                " --plugin, `report` needs these",
                file=sys.stderr,
            )
    return complete


def _write(asked: Request, out: Path, formats: list[str] | None) -> bool:
    """Write a grid's report, and return whether all of its figures could be drawn."""
    from bench.report import USUAL, NotDrawn, write_report
    from bench.toy.report import FORMATS, write_toy_report
    from bench.toy.study import ToyGrid

    spec, request = recorded(asked)
    records, folder = request.results / spec.name, out / spec.name
    with request.naming_commands(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NotDrawn)
        if isinstance(spec, ToyGrid):
            print(write_toy_report(spec, records, folder, formats or FORMATS))
        else:
            print(write_report(spec, records, folder, formats or USUAL))
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"warning: {text}", file=sys.stderr)
    return not any(issubclass(warning.category, NotDrawn) for warning in caught)


def recorded(asked: Request) -> "tuple[Grid | ToyGrid, Request]":
    """Return the grid or study that records were made of, and what was asked to make them."""
    from bench.grid.expand import REHEARSAL, rehearsed

    grid, profile = split_profile(asked.grid.removesuffix(REHEARSAL))
    request = replace(asked, grid=grid, profile=profile)
    if toy := toy_of(request):
        return toy, request
    spec, _ = request.load()
    return (rehearsed(spec) if asked.grid.endswith(REHEARSAL) else spec), request
