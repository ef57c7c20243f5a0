"""The command line. Torch and the registries are imported by the verbs that need them: `--help` is instant."""

import re
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import (
    DataOption,
    GridOption,
    IntoOption,
    KeepOption,
    OnlyOption,
    OutOption,
    PathOption,
    PluginOption,
    ProfileOption,
    RehearseOption,
    ResultsOption,
    SetOption,
    SourcesArgument,
)
from bench.cli.planning import load_plugins, planned, prepare_all, recorded, run_here, tasks_of, toy_of
from bench.cli.request import Request
from bench.cli.run import run, worker
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

results_app = typer.Typer(help="Work on records.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(results_app, name="results")
app.command()(run)
app.command(hidden=True)(worker)


@app.command()
def check(
    grid: GridOption,
    baseline: Annotated[Path | None, PathOption(help="file of stored values; cifar_ci has its own")] = None,
    update: Annotated[bool, typer.Option("--update", help="write the baseline instead")] = False,
    seeds: Annotated[int | None, typer.Option(help="how many; else the grid's own, or 30 to --update", min=1)] = None,
    junit: Annotated[Path | None, PathOption(help="JUnit XML file to write")] = None,
    against: Annotated[str | None, typer.Option(help="git revision to compare the time of a step with")] = None,
    slower: Annotated[float, typer.Option(help="how many times --against's seconds are too many", min=1)] = 1.1,
    profile: ProfileOption = None,
    settings: SetOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    data_root: DataOption = Path("data"),
    results: Annotated[Path | None, PathOption(help="empty folder for the records, else a temporary one")] = None,
    plugin: PluginOption = None,
    workers: Annotated[int, typer.Option(help="processes that decode images of a set that streams", min=0)] = 2,
) -> None:
    """Run a small grid anew and compare it with a baseline; exit code 1 when something moved."""
    from bench.check.check import Gate
    from bench.core.device import find_device
    from bench.train.cell import Limits

    if update and (junit or against):
        raise UserError("--update only writes the baseline: leave out --junit and --against")
    load_plugins(plugin)
    with Request(grid, profile, settings or (), plugin or (), data_root).naming_commands():
        gate = Gate(grid, profile, settings or [], baseline, update, seeds)
    target = find_device(device)
    pace = []
    if against is not None:  # first, so that its mistakes cost no result
        words = ["--device", device, "--data-root", str(data_root.absolute()), "--workers", str(workers)]
        words += [word for path in plugin or () for word in ("--plugin", str(path.absolute()))]
        pace = gate.pace(against, slower, words)
    with gate.places(data_root, results) as places:
        tasks = tasks_of(gate.spec, None, places)
        gate.refuse(tasks)
        outcomes = run_here(tasks, places, target, workers, Limits())
        if update:
            with gate.repeating(data_root) as (few, again):
                outcomes += run_here(tasks_of(few, None, again), again, target, workers, Limits())
                print(gate.write(outcomes, places, few, again))
            return
        findings = gate.findings(outcomes, places) + pace
    gate.report(findings, junit)
    if any(finding.red for finding in findings):
        raise typer.Exit(1)


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


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="methods, priors, datasets, backbones, grids or executors")],
    data_root: DataOption = Path("data"),
    plugin: PluginOption = None,
) -> None:
    """List what can be named in a grid."""
    from bench.cli.listing import listing

    load_plugins(plugin)
    for name, description in listing(what, data_root):
        print(f"{name:<18} {description}".rstrip())


@app.command()
def status(
    grid: GridOption,
    profile: ProfileOption = None,
    settings: SetOption = None,
    only: OnlyOption = None,
    data_root: DataOption = Path("data"),
    results: ResultsOption = Path("results"),
    plugin: PluginOption = None,
) -> None:
    """Show how far the cells of a grid are."""
    request = Request(grid, profile, settings or (), plugin or (), data_root, results)
    if toy := toy_of(request, only):
        from bench.toy.study import print_states

        print_states(toy, results)
        return
    from bench.cli.listing import state_of
    from bench.plan.graph import Ready
    from bench.run.executors.slurm import jobs_of
    from bench.run.progress import describe

    load_plugins(plugin)
    _, places, tasks = planned(request, only)
    jobs = jobs_of(places)  # before the records are read: what ends in between is not taken for lost
    states = [state_of(task, places, jobs) for task in tasks]
    for task, state in zip(tasks, states, strict=True):
        print(f"{task.id if isinstance(task, Ready) else '-':<16}  {describe(task.cell)}: {state}")
    counts = Counter(re.split(r"\W", state)[0] for state in states)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))


@app.command()
def cancel(
    grid: GridOption,
    profile: ProfileOption = None,
    settings: SetOption = None,
    results: ResultsOption = Path("results"),
) -> None:
    """Take a grid's jobs out of the queue of its cluster; cells that run save themselves."""
    if toy := toy_of(Request(grid, profile, settings or ())):
        print(f"{toy.name} has no jobs")
        return
    from bench.core.paths import Places
    from bench.grid.load import load_grid
    from bench.run.executors.slurm import cancel

    spec = load_grid(grid, profile, settings or [])
    cancelled = cancel(Places(data=Path(), results=results, grid=spec.name))
    print(f"{len(cancelled)} jobs of {spec.name} cancelled" if cancelled else f"{spec.name} has no jobs in the queue")


@app.command()
def prepare(
    grid: GridOption,
    profile: ProfileOption = None,
    settings: SetOption = None,
    data_root: DataOption = Path("data"),
    results: ResultsOption = Path("results"),
    plugin: PluginOption = None,
) -> None:
    """Fetch the data and weights of a grid, and nothing else."""
    request = Request(grid, profile, settings or (), plugin or (), data_root, results)
    if toy := toy_of(request):
        print(f"{toy.name} draws its own data: nothing to fetch")
        return
    load_plugins(plugin)
    _, places, tasks = planned(request)
    if not prepare_all(tasks, places):
        raise typer.Exit(1)


@results_app.command()
def merge(sources: SourcesArgument, into: IntoOption, keep_first: KeepOption = False) -> None:
    """Bring together records that were made on several machines; the sources stay as they are.

    A finished record counts before a failed one, and the newer of two failed ones. Two finished records of a cell must
    have the same scores, steps and FLOPs, or nothing is written (exit code 2). Exit code 1: a file was left out, as it
    holds no record of the grid. Backbones that cells need as their prior come along; checkpoints stay.
    """
    from bench.cli.merge import copy_files, plan_merge
    from bench.report.tables import one_line

    found = plan_merge(sources, into, keep_first)
    copy_files(found)
    replaced = sum(each.replaces for each in found.records)
    print(
        f"{len(found.records)} records copied to {into}, {replaced} of them in place of a failed one's;"
        f" {found.same} were there; {len(found.backbones)} backbones of priors copied"
    )
    for each in found.left_out:
        print(one_line(f"left out: {each.path}: {each.reason}"), file=sys.stderr)
    if found.left_out:
        raise typer.Exit(1)


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
