"""The command line. Torch and the registries are imported by the verbs that need them: `--help` is instant."""

import re
import sys
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.request import Request
from bench.core.environment import keep_talking, leave_torchrun, make_deterministic, tune_process
from bench.core.errors import UserError
from bench.core.paths import expanded, is_file

if TYPE_CHECKING:
    import torch

    from bench.core.paths import Places
    from bench.grid.schema import Grid
    from bench.plan.graph import Task
    from bench.plan.state import Outcome
    from bench.toy.study import ToyGrid
    from bench.train.cell import Limits

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

PathOption = partial(typer.Option, parser=expanded, metavar="PATH")

GridOption = Annotated[str, typer.Option("--grid", help="a shipped grid's name, or the path of a YAML file")]
ProfileOption = Annotated[str | None, typer.Option(help="overrides of the grid's profiles; `mini` suits any grid")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as protocol.epochs=2; repeatable")]
RehearseOption = Annotated[bool, typer.Option("--rehearse", help="every cell in a few steps, on stand-in data")]
OnlyOption = Annotated[
    str | None, typer.Option(help="KEY=VALUE,... such as dataset=cifar10,budget=0.5; a comma in a name is part of it")
]
DataOption = Annotated[Path, PathOption("--data-root", envvar="BENCH_DATA", help="folder of datasets and priors")]
IntoOption = Annotated[Path, PathOption("--into", help="folder of the same kind as the sources; may be new")]
KeepOption = Annotated[
    bool, typer.Option("--keep-first", help="where two results of a cell differ, keep INTO's, else the first")
]
SourcesArgument = Annotated[
    list[Path],
    typer.Argument(parser=expanded, help="folders of records, each of one grid or with one below it for each"),
]
ResultsOption = Annotated[Path, PathOption("--results", help="folder of records, one below it for each grid")]
OutOption = Annotated[Path, PathOption("--out", help="folder to write to, one below it for each grid")]
PluginOption = Annotated[list[Path] | None, PathOption("--plugin", help="Python file that registers something")]


@app.command()
def run(
    context: typer.Context,
    grid: GridOption,
    profile: ProfileOption = None,
    settings: SetOption = None,
    only: OnlyOption = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(help="a cell's id: run this one alone; repeatable; - reads ids from standard input"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    executor: Annotated[str, typer.Option(help="how cells are run; `list executors` tells")] = "local",
    data_root: DataOption = Path("data"),
    results: ResultsOption = Path("results"),
    plugin: PluginOption = None,
    workers: Annotated[int, typer.Option(help="processes that decode images of a set that streams", min=0)] = 2,
    download: Annotated[bool, typer.Option("--download", help="first do what `prepare` does")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the cells, what is done, and the cost")] = False,
    tflops: Annotated[float | None, typer.Option(help="device rate that --dry-run assumes, in TFLOP/s", min=0)] = None,
    rehearse: RehearseOption = False,
    retry: Annotated[list[str] | None, typer.Option(help="only cells that are failed, oom or timeout")] = None,
    cell_timeout: Annotated[float | None, typer.Option(help="seconds that a cell may take in all", min=0)] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="seconds between two checkpoints of a cell", min=0)] = 60.0,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="equal bits on a GPU, too; slower")] = False,
    jobs: Annotated[int | None, typer.Option(help="cells at a time on a CPU, each in a process of its own")] = None,
    jobs_per_gpu: Annotated[int | None, typer.Option(help="cells at a time on each GPU, each in a process")] = None,
    partition: Annotated[str | None, typer.Option(help="of the cluster; else its default")] = None,
    gpus_per_cell: Annotated[int | None, typer.Option(help="GPUs that train each cell together", min=1)] = None,
    nodes_per_cell: Annotated[int | None, typer.Option(help="nodes that these are on, 1 unless said", min=1)] = None,
    array_parallelism: Annotated[int | None, typer.Option(help="cells of a job array that run at once", min=1)] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for sbatch, such as time=1:00:00; repeatable")
    ] = None,
) -> None:
    """Run the cells of a grid that are not done yet, the failed ones among them."""
    from bench.run.executors import Resources

    asked = Resources.among(context.params)
    request = Request(grid, profile, settings or (), plugin or (), data_root, results)
    if toy := _toy(request, only):
        from bench.toy.study import print_states, run_toy

        if cell or executor != "local" or asked != Resources():
            raise UserError(f"{toy.name} has settings instead of cells: leave out --cell, --executor and its options")
        if rehearse:
            print(f"{toy.name} takes seconds as it is: nothing to rehearse")
        elif dry_run:
            print_states(toy, results)
        else:
            run_toy(toy, results)
            print(f"{request.command('report')}  makes a table and a plot of them")
        return
    if deterministic:
        make_deterministic()
    from bench.core.device import find_device
    from bench.core.distributed import first_then_others, start, stop, world
    from bench.run.control import check_retry, chosen, command, concluded, speaks
    from bench.run.executors import Work, find_executor
    from bench.train.cell import Limits

    check_retry(retry or [], rehearse or dry_run)
    _load_plugins(plugin)
    if rehearse and (cell or executor != "local" or asked != Resources()):
        raise UserError("--rehearse runs all cells, one after the other: leave out --cell, --executor and its options")
    runs = find_executor(executor, device, asked)
    start(device)
    limits = Limits(checkpoint_seconds, cell_timeout)
    with first_then_others():
        spec, places, tasks = _plan(request, only)
        if download:
            _prepare(tasks, places)
            spec, places, tasks = _plan(request, only)
    if world() > 1 and (rehearse or dry_run):
        raise UserError(f"{'--rehearse' if rehearse else '--dry-run'} is for one process: leave torchrun out")
    tasks = chosen(tasks, places, cell or [], retry or [])
    if rehearse:
        if dry_run:
            raise UserError("--rehearse --dry-run: choose one; --dry-run says what the real run costs")
        bad, queued = _rehearse(spec, only, tasks, places, find_device(device), workers, limits), False
    elif dry_run:
        from bench.plan.estimate import print_estimate

        print_estimate(tasks, places, find_device(device), tflops)
        return
    else:
        work = Work(tasks, places, workers, limits, command(context))
        outcomes = concluded(lambda: runs.run(work), places)
        bad = [outcome for outcome in outcomes if outcome.bad]
        queued = any(outcome.status == "queued" for outcome in outcomes)
    tells = speaks()
    stop()
    if bad:
        from bench.plan.graph import Missing

        if tells and any(isinstance(outcome.task, Missing) for outcome in bad):
            print(f"{request.command('prepare')}  fetches what can be fetched", file=sys.stderr)
        raise typer.Exit(1)
    if queued:
        print(f"{request.command('status')}  shows how far they are")
        print(f"{request.command('cancel')}  takes them out of the queue")
    elif tells:
        print(f"{request.command('report', *['--rehearse'] * rehearse)}  makes tables and plots of them")
    leave_torchrun()


def _run(
    tasks: "list[Task]", places: "Places", device: "torch.device", workers: int, limits: "Limits"
) -> "list[Outcome]":
    """Run the tasks in this process, say what became of them, and return it."""
    from bench.run.control import concluded
    from bench.run.progress import Display
    from bench.run.runner import run_tasks

    return concluded(lambda: run_tasks(tasks, places, device, workers, Display(places.mark), limits), places)


def _rehearse(
    spec: "Grid",
    only: str | None,
    tasks: "list[Task]",
    places: "Places",
    device: "torch.device",
    workers: int,
    limits: "Limits",
) -> "list[Outcome]":
    """Rehearse a grid, say which of its cells (`tasks`) would fail here, and return what failed in the rehearsal."""
    from bench.grid.expand import expand, rehearsed
    from bench.plan.rehearsal import lay_out, obstacles, stage
    from bench.run.progress import describe

    short = rehearsed(spec)
    there = stage(places, short.name)
    lay_out(expand(short), places.data, there.data)
    outcomes = _run(_tasks(short, only, there), there, device, workers, limits)
    found = obstacles(tasks, places)
    for reason, stopped in found.items():
        print(f"{len(stopped)} of {len(tasks)} cells would fail: {reason}")
        for task in stopped:
            print(f"  {describe(task.cell)}")
    if not found:
        print(f"all {len(tasks)} cells have what they need here")
    return [outcome for outcome in outcomes if outcome.status not in {"done", "skipped"}]


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
    _load_plugins(plugin)
    with Request(grid, profile, settings or (), plugin or (), data_root).naming_commands():
        gate = Gate(grid, profile, settings or [], baseline, update, seeds)
    target = find_device(device)
    pace = []
    if against is not None:  # first, so that its mistakes cost no result
        words = ["--device", device, "--data-root", str(data_root.absolute()), "--workers", str(workers)]
        words += [word for path in plugin or () for word in ("--plugin", str(path.absolute()))]
        pace = gate.pace(against, slower, words)
    with gate.places(data_root, results) as places:
        tasks = _tasks(gate.spec, None, places)
        gate.refuse(tasks)
        outcomes = _run(tasks, places, target, workers, Limits())
        if update:
            with gate.repeating(data_root) as (few, again):
                outcomes += _run(_tasks(few, None, again), again, target, workers, Limits())
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
    _load_plugins(plugin)
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

    spec, request = _recorded(request, rehearse)
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

    _load_plugins(plugin)
    spec, request = _recorded(Request(grid, profile, settings or (), plugin or (), results=results), rehearse)
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

    _load_plugins(plugin)
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
    if toy := _toy(request, only):
        from bench.toy.study import print_states

        print_states(toy, results)
        return
    from bench.cli.listing import state_of
    from bench.plan.graph import Ready
    from bench.run.executors.slurm import jobs_of
    from bench.run.progress import describe

    _load_plugins(plugin)
    _, places, tasks = _plan(request, only)
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
    if toy := _toy(Request(grid, profile, settings or ())):
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
    if toy := _toy(request):
        print(f"{toy.name} draws its own data: nothing to fetch")
        return
    _load_plugins(plugin)
    _, places, tasks = _plan(request)
    if not _prepare(tasks, places):
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


def _toy(request: Request, only: str | None = None) -> "ToyGrid | None":
    """Return the study that is asked for, None when it is a grid with cells."""
    from bench.toy.study import find_toy

    toy = find_toy(request.grid, request.profile, request.settings)
    if toy and only is not None:
        raise UserError(f"--only {only}: {toy.name} has no cells; choose by --set, such as --set 'sigmas=[0.1]'")
    return toy


def _recorded(request: Request, rehearse: bool) -> "tuple[Grid | ToyGrid, Request]":
    """Return the grid or study that records were made of, and what was asked to make them.

    Its name may be as its folder of records has it: `<grid>`, `<grid>@<profile>`, rehearsed.
    """
    from bench.grid.expand import REHEARSAL, rehearsed
    from bench.grid.load import load_grid

    if not is_file(expanded(request.grid)):
        base, _, profile = request.grid.removesuffix(REHEARSAL).partition("@")
        rehearse = rehearse or request.grid.endswith(REHEARSAL)
        request = replace(request, grid=base, profile=request.profile or profile or None)
    if toy := _toy(request):
        return toy, request
    spec = load_grid(request.grid, request.profile, request.settings)
    return (rehearsed(spec) if rehearse else spec), request


def _plan(request: Request, only: str | None = None) -> "tuple[Grid, Places, list[Task]]":
    from bench.core.paths import Places
    from bench.grid.load import load_grid

    spec = load_grid(request.grid, request.profile, request.settings)
    places = Places(data=request.data_root or Path("data"), results=request.results, grid=spec.name)
    return spec, places, _tasks(spec, only, places)


def _tasks(spec: "Grid", only: str | None, places: "Places") -> "list[Task]":
    """Return the tasks of a grid, or of those of its cells that `--only` names and what these need."""
    from bench.grid.expand import expand, select

    cells = expand(spec)
    chosen = cells if only is None else select(cells, only)  # a mistake there is said before torch is imported
    from bench.plan.graph import plan

    return plan(cells, chosen, places, f"grid {spec.name}")


def _load_plugins(paths: list[Path] | None) -> None:
    from bench.core.registry import load_plugin

    for path in paths or []:
        load_plugin(path)


def _prepare(tasks: "list[Task]", places: "Places") -> bool:
    """Fetch what the tasks need, say what happened to each, and return whether all is there."""
    from bench.plan.prepare import prepare_tasks

    return prepare_tasks(tasks, places)


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
