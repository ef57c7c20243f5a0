"""The command line. Torch and the registries are imported by the verbs that need them: `--help` is instant."""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.errors import UserError
from bench.process import tune_process

if TYPE_CHECKING:
    import torch

    from bench.places import Places
    from bench.plan import Task
    from bench.spec import Grid

app = typer.Typer(
    name="rela-bench",
    help="Does a free prior model halve the cost of self-supervised learning? Run it and see.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

GridOption = Annotated[str, typer.Option("--grid", help="a shipped grid's name, or the path of a YAML file")]
ProfileOption = Annotated[str | None, typer.Option(help="overrides of the grid's profiles; `mini` suits any grid")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as protocol.epochs=2; repeatable")]
OnlyOption = Annotated[str | None, typer.Option(help="KEY=VALUE,... such as dataset=cifar10,budget=0.5")]
DataOption = Annotated[Path, typer.Option("--data-root", envvar="BENCH_DATA", help="folder of datasets and priors")]
ResultsOption = Annotated[Path, typer.Option("--results", help="folder of records, one below it for each grid")]
PluginOption = Annotated[list[Path] | None, typer.Option("--plugin", help="Python file that registers something")]


@app.command()
def run(
    grid: GridOption,
    profile: ProfileOption = None,
    settings: SetOption = None,
    only: OnlyOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    data_root: DataOption = Path("data"),
    results: ResultsOption = Path("results"),
    plugin: PluginOption = None,
    workers: Annotated[int, typer.Option(help="processes that decode images of a set that streams", min=0)] = 2,
    download: Annotated[bool, typer.Option("--download", help="first do what `prepare` does")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the cells, what is done, and the cost")] = False,
    tflops: Annotated[float | None, typer.Option(help="device rate that --dry-run assumes, in TFLOP/s", min=0)] = None,
) -> None:
    """Run the cells of a grid that are not done yet."""
    spec, places, tasks = _plan(grid, profile, settings, only, data_root, results, plugin)
    if download:
        _prepare(tasks, places)
        spec, places, tasks = _plan(grid, profile, settings, only, data_root, results, plugin)
    target = _device(device)
    if dry_run:
        from bench.estimate import print_estimate

        print_estimate(tasks, places, target, tflops)
        return
    from bench.progress import Display
    from bench.runner import run_tasks
    from bench.train import Interrupted

    try:
        outcomes = run_tasks(tasks, places, target, workers, Display())
    except Interrupted:
        print("stopped; the running cell is saved: the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    bad = [outcome for outcome in outcomes if outcome.status != "done"]
    done = len(outcomes) - len(bad)
    cached = sum(outcome.cached for outcome in outcomes)
    print(f"{done} of {len(outcomes)} cells done ({cached} before); records in {places.records}")
    for (state, reason), count in Counter((outcome.status, outcome.reason) for outcome in bad).items():
        print(f"{count} {state}: {reason}", file=sys.stderr)
    if bad:
        raise typer.Exit(1)
    print(f"python -m bench report {spec.name}  makes tables and plots of them")


@app.command()
def report(
    grid: Annotated[str | None, typer.Argument(help="a grid; without one, every grid that has records")] = None,
    profile: ProfileOption = None,
    settings: SetOption = None,
    results: ResultsOption = Path("results"),
    out: Annotated[Path, typer.Option("--reports", help="folder to write to")] = Path("reports"),
    plugin: PluginOption = None,
) -> None:
    """Make tables and plots from records; trains nothing."""
    from bench.grid import load_grid
    from bench.report import write_report

    _load_plugins(plugin)
    if grid is None:
        names = sorted(path.name for path in results.glob("*/") if any(path.glob("*.json")))
        if not names:
            raise UserError(
                f"--results {results}: no records there; `python -m bench run --grid quickstart` makes some"
            )
    else:
        names = [grid]
    for name in names:
        base, _, in_name = name.partition("@")
        try:
            spec = load_grid(base, profile or in_name or None, settings or [])
            print(write_report(spec, results / spec.name, out / spec.name))
        except UserError as error:
            if grid is not None:
                raise
            print(f"{results / name}: left out: {error}", file=sys.stderr)


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="methods, priors, datasets, backbones or grids")],
    data_root: DataOption = Path("data"),
    plugin: PluginOption = None,
) -> None:
    """List what can be named in a grid."""
    from bench.listing import listing

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
    from bench.listing import state_of
    from bench.progress import describe

    _, places, tasks = _plan(grid, profile, settings, only, data_root, results, plugin)
    states = [state_of(task, places) for task in tasks]
    for task, state in zip(tasks, states, strict=True):
        print(f"{task.id or '-':<16}  {describe(task.cell)}: {state}")
    counts = Counter(re.split(r"\W", state)[0] for state in states)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))


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
    _, places, tasks = _plan(grid, profile, settings, None, data_root, results, plugin)
    if not _prepare(tasks, places):
        raise typer.Exit(1)


def _plan(
    grid: str,
    profile: str | None,
    settings: list[str] | None,
    only: str | None,
    data_root: Path,
    results: Path,
    plugin: list[Path] | None,
) -> "tuple[Grid, Places, list[Task]]":
    from bench.grid import expand, load_grid, select
    from bench.places import Places

    _load_plugins(plugin)
    spec = load_grid(grid, profile, settings or [])
    cells = expand(spec)
    chosen = select(cells, only) if only else cells
    from bench.plan import plan

    places = Places(data=data_root, results=results, grid=spec.name)
    return spec, places, plan(cells, chosen, places, f"grid {spec.name}")


def _load_plugins(paths: list[Path] | None) -> None:
    from bench.registry import load_plugin

    for path in paths or []:
        load_plugin(path)


def _prepare(tasks: "list[Task]", places: "Places") -> bool:
    """Fetch what the tasks need, say what happened to each, and return whether all is there."""
    from bench.prepare import prepare_tasks

    return prepare_tasks(tasks, places)


def _device(name: str) -> "torch.device":
    import torch

    if name not in {"auto", "cpu", "cuda"}:
        raise UserError(f"--device {name}: must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def main() -> None:
    """Run the command line; a UserError, or a path that cannot be used, becomes one sentence and exit code 2."""
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
