"""The verb `prepare`."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli import options
from bench.cli.planning import load_plugins, planned, toy_of
from bench.plan.request import Request


def prepare(
    grid: options.GridArgument = None,
    named: options.NamedOption = None,
    profile: options.ProfileOption = None,
    settings: options.SetOption = None,
    data_root: options.DataOption = Path("data"),
    results: Annotated[Path, options.PathOption("--results", hidden=True)] = Path("results"),
    plugin: options.PluginOption = None,
) -> None:
    """Fetch the data and weights of a grid, and nothing else."""
    chosen = options.chosen_grid(grid, named, profile)
    request = Request(*chosen, tuple(settings or ()), tuple(plugin or ()), data_root, results)
    if toy := toy_of(request):
        print(f"{toy.name} draws its own data: nothing to fetch")
        return
    from bench.plan.prepare import prepare_tasks

    load_plugins(plugin)
    _, paths, tasks = planned(request)
    if not prepare_tasks(tasks, paths):
        raise typer.Exit(1)
