"""The verb `prepare`."""

from pathlib import Path

import typer

from bench.cli import options
from bench.cli.planning import load_plugins, planned, toy_of
from bench.cli.request import Request


def prepare(
    grid: options.GridArgument = None,
    named: options.SameOption = None,
    profile: options.ProfileOption = None,
    settings: options.SetOption = None,
    data_root: options.DataOption = Path("data"),
    results: options.ResultsOption = Path("results"),
    plugin: options.PluginOption = None,
) -> None:
    """Fetch the data and weights of a grid, and nothing else."""
    request = Request(options.chosen_grid(grid, named), profile, settings or (), plugin or (), data_root, results)
    if toy := toy_of(request):
        print(f"{toy.name} draws its own data: nothing to fetch")
        return
    from bench.plan.prepare import prepare_tasks

    load_plugins(plugin)
    _, places, tasks = planned(request)
    if not prepare_tasks(tasks, places):
        raise typer.Exit(1)
