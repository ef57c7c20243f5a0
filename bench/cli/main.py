"""The command line. Torch and the registries are imported by the verbs that need them: `--help` is instant."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.check import check
from bench.cli.listing import list_names
from bench.cli.merge import merge
from bench.cli.options import (
    OutOption,
    PathOption,
    PluginOption,
    ProfileOption,
    RehearseOption,
    ResultsOption,
    SetOption,
)
from bench.cli.planning import load_plugins, recorded
from bench.cli.prepare import prepare
from bench.cli.request import Request
from bench.cli.run import run, worker
from bench.cli.status import cancel, status
from bench.core.environment import keep_talking, tune_process
from bench.core.errors import UserError

app = typer.Typer(
    name="rela-bench",
    help="Does a free prior model halve the cost of self-supervised learning? Run it and see.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (run, check, status, cancel, prepare, merge):
    app.command()(verb)
app.command("list")(list_names)
app.command(hidden=True)(worker)
results_app = typer.Typer(help="As `merge` was called before.", no_args_is_help=True, rich_markup_mode=None)
results_app.command()(merge)
app.add_typer(results_app, name="results", hidden=True)


@app.command()
def report(
    grid: Annotated[str | None, typer.Argument(help="a grid; without one, every grid that has records")] = None,
    profile: ProfileOption = None,
    settings: SetOption = None,
    results: ResultsOption = Path("results"),
    out: Annotated[Path, PathOption("--reports", help="folder to write to")] = Path("reports"),
    plugin: PluginOption = None,
    rehearse: RehearseOption = False,
) -> None:
    """Make tables and plots from records; trains nothing. Exit code 1: something was left out."""
    load_plugins(plugin)
    asked = Request(grid or "quickstart", profile, settings or (), plugin or (), results=results)
    if grid is not None:
        complete = _report(asked, rehearse, out)
    else:
        from bench.store.record import record_files

        there = results.iterdir() if results.exists() else ()
        names = sorted(path.name for path in there if path.is_dir() and record_files(path))
        if not names:
            raise UserError(f"--results {results}: no records there; `{asked.command('run')}` makes some")
        complete = True
        for name in names:
            try:
                complete = _report(replace(asked, grid=name), rehearse, out) and complete
            except UserError as error:
                complete = False
                print(
                    f"{results / name}: left out: {error}; where its grid is a file, or was run with --set or"
                    " --plugin, `report` needs these",
                    file=sys.stderr,
                )
    if not complete:
        raise typer.Exit(1)


def _report(request: Request, rehearse: bool, out: Path) -> bool:
    """Write a grid's tables and plots, and return whether all of its plots could be drawn."""
    from bench.report import NotDrawn, write_report
    from bench.toy.report import write_toy_report
    from bench.toy.study import ToyGrid

    spec, request = recorded(request, rehearse)
    records, folder = request.results / spec.name, out / spec.name
    with request.naming_commands(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NotDrawn)
        if isinstance(spec, ToyGrid):
            print(write_toy_report(spec, records, folder))
        else:
            print(write_report(spec, records, folder))
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return not any(issubclass(warning.category, NotDrawn) for warning in caught)


@app.command()
def export(
    grid: Annotated[str, typer.Argument(help="a grid that has records")],
    profile: ProfileOption = None,
    settings: SetOption = None,
    results: ResultsOption = Path("results"),
    out: OutOption = Path("exports"),
    formats: Annotated[str, typer.Option("--format", help="some of csv,parquet,latex,tensorboard")] = "csv,latex",
    plugin: PluginOption = None,
    rehearse: RehearseOption = False,
) -> None:
    """Write records for other tools: a tidy table of all evaluations, LaTeX, TensorBoard's event files."""
    from bench.report.export import write_export
    from bench.toy.study import ToyGrid

    load_plugins(plugin)
    spec, request = recorded(Request(grid, profile, settings or (), plugin or (), results=results), rehearse)
    if isinstance(spec, ToyGrid):
        raise UserError(f"{spec.name} has settings instead of cells: `report` writes all that there is of it")
    names = [name.strip() for name in formats.split(",")]
    with request.naming_commands():
        written = write_export(spec, results / spec.name, out / spec.name, names)
    runs = sum(path.parent.parent.name == "tensorboard" for path in written)
    for path in written[: len(written) - runs]:
        print(path)
    if runs:
        print(f"{written[-1].parent.parent}: {runs} runs")


def main() -> None:
    """Run the command line; a UserError, or a path that cannot be used, becomes one sentence and exit code 2."""
    keep_talking()
    tune_process()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not error.filename:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
