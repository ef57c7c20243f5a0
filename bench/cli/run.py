"""The verb `run`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import (
    DataOption,
    GridArgument,
    OnlyOption,
    PluginOption,
    ProfileOption,
    RehearseOption,
    ResultsOption,
    SameOption,
    SetOption,
    chosen_grid,
)
from bench.cli.planning import planned, run_here, tasks_of, toy_of
from bench.cli.request import Request
from bench.core.environment import in_torchrun, whole_number
from bench.core.errors import UserError

if TYPE_CHECKING:
    from bench.core.paths import Places
    from bench.grid.schema import Grid
    from bench.plan.graph import Task
    from bench.plan.state import Outcome
    from bench.run.executors import Resources
    from bench.run.request import RunRequest
    from bench.toy.study import ToyGrid

CellOption = Annotated[
    list[str] | None,
    typer.Option("--cell", help="id of a cell to run; repeatable; - reads ids from standard input"),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option("--slurm", help="KEY=VALUE for sbatch, such as time=1:00:00, partition=gpu, nodes=2; repeatable"),
]


def run(
    grid: GridArgument = None,
    named: SameOption = None,
    profile: ProfileOption = None,
    settings: SetOption = None,
    only: OnlyOption = None,
    cell: CellOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    executor: Annotated[str, typer.Option(help="how cells are run; `list executors` tells")] = "local",
    data_root: DataOption = Path("data"),
    results: ResultsOption = Path("results"),
    plugin: PluginOption = None,
    workers: Annotated[int, typer.Option(help="processes that decode images of a set that streams", min=0)] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the cells, what is done, and the cost")] = False,
    tflops: Annotated[float | None, typer.Option(help="TFLOP/s of the device, for --dry-run", min=0)] = None,
    rehearse: RehearseOption = False,
    retry: Annotated[list[str] | None, typer.Option(help="only cells that are failed, oom or timeout")] = None,
    cell_timeout: Annotated[float | None, typer.Option(help="seconds that a cell may take in all", min=0)] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="equal bits on a GPU; slower")] = False,
    jobs: Annotated[int | None, typer.Option(help="cells at a time on a CPU, each in a process of its own")] = None,
    jobs_per_gpu: Annotated[int | None, typer.Option(help="cells at a time on each GPU, each in a process")] = None,
    gpus_per_cell: Annotated[int | None, typer.Option(help="GPUs (or processes) that train each cell", min=1)] = None,
    slurm: SlurmOption = None,
) -> None:
    """Run the cells of a grid that are not done yet, the failed ones among them."""
    from bench.run.executors import Resources
    from bench.run.request import RunRequest

    refuse_torchrun()
    given = (chosen_grid(grid, named), profile, tuple(settings or ()), tuple(plugin or ()), data_root, results)
    request = RunRequest(*given, device, workers, deterministic, cell_timeout)
    resources = Resources(jobs, jobs_per_gpu, gpus_per_cell, tuple(slurm or ()) or None)
    call = Call(request, resources, executor, only, tuple(cell or ()), tuple(retry or ()), rehearse, dry_run, tflops)
    if toy := toy_of(call.shared, only):
        call.run_toy(toy)
    else:
        call.run()


def worker(part: Annotated[str, typer.Argument(help="which cell, in JSON")]) -> None:
    """Train a part of one cell; `run --gpus-per-cell` starts it under torchrun."""
    from bench.run.worker import work

    work(part)


def refuse_torchrun() -> None:
    """Raise UserError in the first of several processes of torchrun, and end the others."""
    if in_torchrun():
        if whole_number("RANK"):
            raise typer.Exit(2)
        raise UserError(
            "`run` starts torchrun itself, for each cell alone: leave torchrun out, and use"
            f" `run --gpus-per-cell {whole_number('WORLD_SIZE')}`"
        )


@dataclass(frozen=True)
class Call:
    """What `run` is asked: about each cell, who runs it, which cells, and whether only to rehearse or to estimate."""

    request: "RunRequest"
    resources: "Resources"
    executor: str
    only: str | None
    cells: Sequence[str]
    retry: Sequence[str]
    rehearse: bool
    dry_run: bool
    tflops: float | None

    @property
    def shared(self) -> Request:
        """What other verbs are asked too."""
        asked = self.request
        return Request(asked.grid, asked.profile, asked.settings, asked.plugins, asked.data_root, asked.results)

    def run_toy(self, toy: "ToyGrid") -> None:
        """Run a study, which has no cells."""
        from bench.run.executors import Resources
        from bench.toy.study import print_states, run_toy

        if self.cells or self.executor != "local" or self.resources != Resources():
            raise UserError(f"{toy.name} has settings instead of cells: leave out --cell, --executor and its options")
        if self.rehearse:
            print(f"{toy.name} takes seconds as it is: nothing to rehearse")
        elif self.dry_run:
            print_states(toy, self.request.results)
        else:
            run_toy(toy, self.request.results)
            print(f"{self.shared.command('report')}  makes a table and a plot of them")

    def run(self) -> None:
        """Run, rehearse or estimate the cells, and say what to do next."""
        from bench.core.device import find_device
        from bench.run.control import check_retry, chosen, concluded
        from bench.run.executors import Work, find_executor

        check_retry(self.retry, self.rehearse or self.dry_run)
        self.request.prepare_process()
        self._check_rehearsal()
        runs = find_executor(self.executor, self.request.device, self.resources)
        spec, places, tasks = planned(self.shared, self.only)
        tasks = chosen(tasks, places, self.cells, self.retry)
        if self.dry_run:
            from bench.plan.estimate import print_estimate

            print_estimate(tasks, places, find_device(self.request.device), self.tflops)
        elif self.rehearse:
            self._conclude(self._rehearse(spec, tasks, places))
        else:
            self._conclude(concluded(lambda: runs.run(Work(tasks, places, self.request)), places))

    def _check_rehearsal(self) -> None:
        """Raise UserError when a rehearsal is asked for together with what it does not have."""
        from bench.run.executors import Resources

        if self.rehearse and (self.cells or self.executor != "local" or self.resources != Resources()):
            raise UserError(
                "--rehearse runs all cells, one after the other: leave out --cell, --executor and its options"
            )
        if self.rehearse and self.dry_run:
            raise UserError("--rehearse --dry-run: choose one; --dry-run says what the real run costs")

    def _conclude(self, outcomes: "Sequence[Outcome]") -> None:
        """Print the command that comes next, and end with exit code 1 when a cell has no result."""
        from bench.plan.graph import Missing
        from bench.run.control import speaks

        bad = [outcome for outcome in outcomes if outcome.bad]
        if bad:
            if speaks() and any(isinstance(outcome.task, Missing) for outcome in bad):
                print(f"{self.shared.command('prepare')}  fetches what can be fetched", file=sys.stderr)
            raise typer.Exit(1)
        if any(outcome.status == "queued" for outcome in outcomes):
            print(f"{self.shared.command('status')}  shows how far they are")
            print(f"{self.shared.command('cancel')}  takes them out of the queue")
        elif speaks():
            more = ["--rehearse"] if self.rehearse else []
            print(f"{self.shared.command('report', *more)}  makes tables and plots of them")

    def _rehearse(self, spec: "Grid", tasks: "list[Task]", places: "Places") -> "list[Outcome]":
        """Rehearse a grid, say which of its `tasks` would fail here, and return what failed in the rehearsal."""
        from bench.core.device import find_device
        from bench.grid.expand import expand, rehearsed
        from bench.plan.rehearsal import lay_out, obstacles, stage
        from bench.run.progress import describe

        short = rehearsed(spec)
        there = stage(places, short.name)
        lay_out(expand(short), places.data, there.data)
        device, workers, limits = find_device(self.request.device), self.request.workers, self.request.limits()
        outcomes = run_here(tasks_of(short, self.only, there), there, device, workers, limits)
        reasons = obstacles(tasks, places)
        for reason, stopped in reasons.items():
            print(f"{len(stopped)} of {len(tasks)} cells would fail: {reason}")
            for task in stopped:
                print(f"  {describe(task.cell)}")
        if not reasons:
            print(f"all {len(tasks)} cells have what they need here")
        return [outcome for outcome in outcomes if outcome.status not in {"done", "skipped"}]
