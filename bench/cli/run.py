"""The verb `run`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import (
    DataOption,
    GridOption,
    OnlyOption,
    PluginOption,
    ProfileOption,
    RehearseOption,
    ResultsOption,
    SetOption,
)
from bench.cli.planning import load_plugins, planned, prepare_all, run_here, tasks_of, toy_of
from bench.cli.request import Request
from bench.core.environment import leave_torchrun, make_deterministic
from bench.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from bench.core.paths import Places
    from bench.grid.schema import Grid
    from bench.plan.graph import Task
    from bench.plan.state import Outcome
    from bench.train.cell import Limits


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
    if toy := toy_of(request, only):
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
    from bench.core.distributed import rank_zero_first, start, stop, world_size
    from bench.run.control import check_retry, chosen, command, concluded, speaks
    from bench.run.executors import Work, find_executor
    from bench.train.cell import Limits

    check_retry(retry or [], rehearse or dry_run)
    load_plugins(plugin)
    if rehearse and (cell or executor != "local" or asked != Resources()):
        raise UserError("--rehearse runs all cells, one after the other: leave out --cell, --executor and its options")
    runs = find_executor(executor, device, asked)
    start(device)
    limits = Limits(checkpoint_seconds, cell_timeout)
    with rank_zero_first():
        spec, places, tasks = planned(request, only)
        if download:
            prepare_all(tasks, places)
            spec, places, tasks = planned(request, only)
    if world_size() > 1 and (rehearse or dry_run):
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
    outcomes = run_here(tasks_of(short, only, there), there, device, workers, limits)
    found = obstacles(tasks, places)
    for reason, stopped in found.items():
        print(f"{len(stopped)} of {len(tasks)} cells would fail: {reason}")
        for task in stopped:
            print(f"  {describe(task.cell)}")
    if not found:
        print(f"all {len(tasks)} cells have what they need here")
    return [outcome for outcome in outcomes if outcome.status not in {"done", "skipped"}]
