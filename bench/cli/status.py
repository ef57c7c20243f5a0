"""The verbs `status` and `cancel`."""

import re
from collections import Counter
from pathlib import Path

from bench.cli import options
from bench.cli.planning import load_plugins, planned, toy_of
from bench.cli.request import Request


def status(
    grid: options.GridArgument = None,
    named: options.SameOption = None,
    profile: options.ProfileOption = None,
    settings: options.SetOption = None,
    only: options.OnlyOption = None,
    data_root: options.DataOption = Path("data"),
    results: options.ResultsOption = Path("results"),
    plugin: options.PluginOption = None,
) -> None:
    """Show how far the cells of a grid are."""
    request = Request(options.chosen_grid(grid, named), profile, settings or (), plugin or (), data_root, results)
    if toy := toy_of(request, only):
        from bench.toy.study import print_states

        print_states(toy, results)
        return
    from bench.core.terminal import print_table
    from bench.plan.graph import Missing
    from bench.plan.state import print_missing
    from bench.run.executors.slurm import jobs_of
    from bench.run.status import state_of

    load_plugins(plugin)
    _, places, tasks = planned(request, only)
    jobs = jobs_of(places)  # before the records are read: what ends in between is not taken for lost
    states = ["missing" if isinstance(task, Missing) else state_of(task, places, jobs) for task in tasks]
    ids = ["-" if isinstance(task, Missing) else task.id for task in tasks]
    print_table(("id", "cell", "state"), zip(ids, [str(task.cell) for task in tasks], states, strict=True))
    print_missing(tasks)
    counts = Counter(re.split(r"\W", state)[0] for state in states)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))


def cancel(
    grid: options.GridArgument = None,
    named: options.SameOption = None,
    profile: options.ProfileOption = None,
    settings: options.SetOption = None,
    results: options.ResultsOption = Path("results"),
) -> None:
    """Cancel a grid's jobs on the cluster; running cells save themselves."""
    request = Request(options.chosen_grid(grid, named), profile, settings or ())
    if toy := toy_of(request):
        print(f"{toy.name} has no jobs")
        return
    from bench.core.paths import Places
    from bench.plan.load import load_grid
    from bench.run.executors.slurm import cancel

    spec = load_grid(request.grid, profile, request.settings)
    cancelled = cancel(Places(data=Path(), results=results, grid=spec.name))
    print(f"{len(cancelled)} jobs of {spec.name} cancelled" if cancelled else f"{spec.name} has no jobs in the queue")
