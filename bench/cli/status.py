"""The verbs `status` and `cancel`."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import options
from bench.cli.planning import load_plugins, planned, toy_of
from bench.plan.request import Request

if TYPE_CHECKING:
    from bench.plan.graph import Task
    from bench.run.status import State

QUIET = {"done", "waiting", "missing", "skipped"}  # states of which their number says all
GLUE = "\N{NO-BREAK SPACE}"  # in what stays on one line
MOST = 10  # rows of a table, before what is done is only listed; and cells of which more is said


def status(
    grid: options.GridArgument = None,
    named: options.NamedOption = None,
    profile: options.ProfileOption = None,
    settings: options.SetOption = None,
    only: options.OnlyOption = None,
    data_root: options.DataOption = Path("data"),
    results: options.ResultsOption = Path("results"),
    plugin: options.PluginOption = None,
    cells: Annotated[bool, typer.Option("--cells", help="a line for each cell, with its id")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Show how far the cells of a grid are."""
    chosen = options.chosen_grid(grid, named, profile)
    request = Request(*chosen, tuple(settings or ()), tuple(plugin or ()), data_root, results)
    if toy := toy_of(request, only):
        from bench.toy.study import print_states

        print_states(toy, results, as_json)
        return
    from bench.plan.state import facts, missing_text, stale_text, unevaluated_text
    from bench.run.executors.slurm import jobs_of
    from bench.run.status import states_of

    load_plugins(plugin)
    _, paths, tasks = planned(request, only)
    jobs = jobs_of(paths)  # before the records are read: what ends in between is not taken for lost
    states = states_of(tasks, paths, jobs)
    if as_json:
        known = ({"state": state.kind, "text": state.text, "linear": state.linear} for state in states)
        print(json.dumps([facts(task) | its for task, its in zip(tasks, known, strict=True)], indent=1))
        return
    (_print_cells if cells else _print_groups)(tasks, states)
    lacking = [task for task, state in zip(tasks, states, strict=True) if state.kind == "missing"]
    print(missing_text(lacking, paths, request.command("prepare")) + stale_text(tasks, paths), end="")
    elsewhere = sum("not here" in state.text for state in states if state.kind == "done")
    by_record = f"; {elsewhere} by records alone: their data is not here" if elsewhere else ""
    print(_counted(states) + by_record)
    if unevaluated := unevaluated_text(tasks, paths):
        print(f"{unevaluated}`{request.command('evaluate')}` makes them")


def _counted(states: "Sequence[State]") -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(state.kind for state in states).items())


def _print_cells(tasks: "Sequence[Task]", states: "Sequence[State]") -> None:
    """Print how far each cell is."""
    from bench.core.terminal import table_text
    from bench.plan.state import shown_id

    short = ["missing" if state.kind == "missing" else state.text for state in states]
    rows = zip([shown_id(task) for task in tasks], [str(task.cell) for task in tasks], short, strict=True)
    print(table_text(("id", "cell", "state"), rows, states="state"))


def _print_groups(tasks: "Sequence[Task]", states: "Sequence[State]") -> None:
    """Print how far the cells of each dataset and arm are, and more of those that run or have failed."""
    from bench.core.terminal import WIDTH, table_text
    from bench.grid.tune import arm_or_trials

    groups: dict[tuple[str, str], dict[float, list[State]]] = defaultdict(lambda: defaultdict(list))
    for task, state in zip(tasks, states, strict=True):
        groups[task.cell.dataset, arm_or_trials(task.cell)][task.cell.budget].append(state)
    lines: list[tuple[str, ...]] = []
    done: dict[str, list[str]] = defaultdict(list)
    for (dataset, arm), budgets in groups.items():
        means = {f"{budget:.0%}": _mean(there) for budget, there in budgets.items()}
        every = [state for there in budgets.values() for state in there]
        if len(groups) > MOST and all(state.kind == "done" for state in every):
            done[dataset] += [f"{arm} {', '.join(map(' '.join, means.items()))}".replace(" ", GLUE)]
            continue
        linear = ", ".join(means.values()) if any(state.linear for state in every) else ""
        lines.append((dataset, arm, _counted(every), ", ".join(means), linear))
    if lines:
        print(table_text(("dataset", "arm", "cells", "budgets", "linear, %"), lines, shorten="arm", states="cells"))
    for dataset, arms in done.items():
        said = f"{dataset}, done, with linear accuracy in % at each budget: {'; '.join(arms)}"
        print(fill(said, WIDTH, subsequent_indent="  ").replace(GLUE, " "))
    loud = [(task, state) for task, state in zip(tasks, states, strict=True) if state.kind not in QUIET]
    for task, state in loud[:MOST]:
        print(f"{task.cell}: {state.text}")
    if len(loud) > MOST:
        print(f"and {len(loud) - MOST} more: --cells")


def _mean(states: "Sequence[State]") -> str:
    linear = [state.linear for state in states if state.linear is not None]
    return f"{100 * statistics.fmean(linear):.1f}" if linear else "-"


def cancel(
    grid: options.GridArgument = None,
    named: options.NamedOption = None,
    profile: options.ProfileOption = None,
    settings: Annotated[list[str] | None, typer.Option("--set", hidden=True)] = None,
    results: options.ResultsOption = Path("results"),
) -> None:
    """Cancel a grid's jobs on the cluster; running cells save themselves."""
    request = Request(*options.chosen_grid(grid, named, profile), tuple(settings or ()), results=results)
    if toy := toy_of(request):
        print(f"{toy.name} has no jobs")
        return
    from bench.run.executors.slurm import cancel

    spec, paths = request.load()
    cancelled = cancel(paths)
    print(f"{len(cancelled)} jobs of {spec.name} cancelled" if cancelled else f"{spec.name} has no jobs in the queue")
