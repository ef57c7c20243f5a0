"""The verb `evaluate`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import options
from bench.cli.planning import planned, toy_of
from bench.core.errors import UserError, did_you_mean
from bench.plan.request import Request

if TYPE_CHECKING:
    from bench.run.request import RunRequest


def evaluate(
    grid: options.GridArgument = None,
    named: options.NamedOption = None,
    profile: options.ProfileOption = None,
    settings: options.SetOption = None,
    only: options.OnlyOption = None,
    device: options.DeviceOption = "auto",
    data_root: options.DataOption = Path("data"),
    results: options.ResultsOption = Path("results"),
    plugin: options.PluginOption = None,
    further: Annotated[
        str | None, typer.Option("--with", help="such as few_labels,transfer, beside those that the grid names")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="cells at a time, on the CPU or on each GPU")] = None,
) -> None:
    """Evaluate the saved backbones of finished cells further, and train nothing."""
    from bench.run.request import RunRequest

    chosen = options.chosen_grid(grid, named, profile)
    asked = Request(*chosen, tuple(settings or ()), tuple(plugin or ()), data_root, results)
    if toy := toy_of(asked, only):
        raise UserError(f"{toy.name} trains no backbone: nothing to evaluate")
    also = _settings(asked, further) if further else ()
    _start(RunRequest(*chosen, (*asked.settings, *also), asked.plugins, data_root, results, device), only, jobs)
    print("every finished cell has the evaluations that are asked for")
    print(f"{asked.command('report')}  shows them")


def _start(request: "RunRequest", only: str | None, jobs: int | None) -> None:
    """Evaluate what lacks something, and end with exit code 1 when that still does."""
    request.prepare_process()
    from bench.plan.graph import Missing, Ready
    from bench.plan.state import missing_text, to_evaluate, unevaluated_text
    from bench.run.control import concluded
    from bench.run.executors import Resources, Work, find_executor

    runs = find_executor("local", request.device, Resources(jobs))
    _, paths, tasks = planned(request, only)
    ready = [task for task in tasks if isinstance(task, Ready)]
    due = [task for task in ready if to_evaluate(task, paths)]
    if due:
        concluded(lambda: runs.run(Work(due, paths, request)), paths)
    missing = [task for task in tasks if isinstance(task, Missing)]
    if lacking := unevaluated_text(ready, paths) + missing_text(missing, paths, request.command("prepare")):
        print(lacking, end="", file=sys.stderr)
        raise typer.Exit(1)


def _settings(asked: Request, further: str) -> tuple[str, ...]:
    """Return the setting that adds evaluations to those of a grid. Raises UserError on a name that is none."""
    from bench.grid.evaluation import EVALUATIONS

    names = list(dict.fromkeys(name.strip() for name in further.split(",")))
    for name in names:
        if name not in EVALUATIONS:
            raise UserError(f"--with {further}: unknown evaluation {name!r}{did_you_mean(name, EVALUATIONS)}")
    own = [each.model_dump(mode="json") for each in asked.load()[0].protocol.evaluate]
    more = [name for name in names if name not in {each["name"] for each in own}]
    return (f"protocol.evaluate={json.dumps([*own, *more])}",)
