"""The verb `run`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import (
    DataOption,
    DeviceOption,
    GridArgument,
    JsonOption,
    NamedOption,
    OnlyOption,
    PluginOption,
    ProfileOption,
    RehearseOption,
    ResultsOption,
    SetOption,
    chosen_grid,
)
from bench.cli.planning import planned, run_here, tasks_of, toy_of
from bench.core.environment import in_torchrun, whole_number
from bench.core.errors import UserError
from bench.plan.request import Request

if TYPE_CHECKING:
    from bench.core.paths import Paths
    from bench.grid.schema import Grid
    from bench.plan.graph import Task
    from bench.plan.state import Outcome
    from bench.run.executors import Executor, Resources
    from bench.run.request import RunRequest
    from bench.toy.study import ToyGrid

CellOption = Annotated[
    list[str] | None,
    typer.Option("--cell", hidden=True),  # id of a cell to run; repeatable; - reads ids from standard input
]
WorkersOption = Annotated[
    int | None, typer.Option(help="processes that decode images of a streamed dataset: 2, on a GPU up to 16", min=0)
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option("--slurm", help="KEY=VALUE for sbatch, such as time=1:00:00, partition=gpu, nodes=2; repeatable"),
]


def run(
    grid: GridArgument = None,
    named: NamedOption = None,
    profile: ProfileOption = None,
    settings: SetOption = None,
    only: OnlyOption = None,
    cell: CellOption = None,
    device: DeviceOption = "auto",
    executor: Annotated[str, typer.Option(help="how to run cells; `list executors` has the names")] = "local",
    data_root: DataOption = Path("data"),
    results: ResultsOption = Path("results"),
    plugin: PluginOption = None,
    workers: WorkersOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what is done and what the rest costs")] = False,
    cells: Annotated[bool, typer.Option("--cells", hidden=True)] = False,
    as_json: JsonOption = False,
    rehearse: RehearseOption = False,
    retry: Annotated[list[str] | None, typer.Option(help="only failed, oom or timeout; repeatable")] = None,
    cell_timeout: Annotated[float | None, typer.Option(help="time limit of a cell, in seconds", min=0)] = None,
    track: Annotated[str | None, typer.Option(help="follow cells live: tensorboard, mlflow or wandb")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="the same bits in each run on a GPU; slower")
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="cells at a time, on the CPU or on each GPU")] = None,
    jobs_per_gpu: Annotated[int | None, typer.Option(hidden=True)] = None,  # as --jobs was called on a GPU
    gpus_per_cell: Annotated[int | None, typer.Option(help="GPUs (or processes) that train each cell", min=1)] = None,
    slurm: SlurmOption = None,
) -> None:
    """Run the cells of a grid that are not done yet, the failed ones among them."""
    from bench.run.executors import Resources
    from bench.run.request import RunRequest

    refuse_torchrun()
    if cells:
        raise UserError("--cells is an option of `status`; `run --dry-run --json` says what each cell costs")
    given = (*chosen_grid(grid, named, profile), tuple(settings or ()), tuple(plugin or ()), data_root, results)
    request = RunRequest(*given, device, workers, deterministic, cell_timeout, track)
    resources = Resources(jobs_per_gpu if jobs is None else jobs, gpus_per_cell, tuple(slurm or ()) or None)
    call = Call(request, resources, executor, only, tuple(cell or ()), tuple(retry or ()), rehearse, dry_run)
    call.start(as_json)


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

    def start(self, as_json: bool) -> None:
        """Do what is asked: run a study or cells, or say what they cost."""
        if as_json and not self.dry_run:
            raise UserError("--json is for --dry-run and `status`")
        if toy := toy_of(self.request, self.only):
            self.run_toy(toy, as_json)
        elif self.dry_run:
            self.estimate(as_json)
        else:
            self.run()

    def run_toy(self, toy: "ToyGrid", as_json: bool) -> None:
        """Run a study, which has no cells."""
        from bench.run.executors import Resources
        from bench.toy.study import print_states, run_toy

        if self.cells or self.executor != "local" or self.resources != Resources() or self.request.track:
            others = "leave out --cell, --track, --executor and its options"
            raise UserError(f"{toy.name} has settings instead of cells: {others}")
        if self.rehearse:
            print(f"{toy.name} takes seconds as it is: nothing to rehearse")
        elif self.dry_run:
            print_states(toy, self.request.results, as_json)
        else:
            run_toy(toy, self.request.results)
            print(f"{self.request.command('report')}  makes a table and a plot of them")

    def estimate(self, as_json: bool) -> None:
        """Say what is done, what a run would do, and what it costs."""
        _, _, paths, tasks = self._planned()
        from bench.core.device import find_device
        from bench.plan.estimate import cost_lines, estimated, print_estimate
        from bench.plan.state import stale_text

        lines = estimated(tasks, paths)
        if as_json:
            print(json.dumps([line.facts() for line in lines], indent=1))
            return
        print_estimate(lines)
        lacking = [line.task for line in lines if line.kind == "missing"]
        print(self._missing(lacking, paths) + stale_text(tasks, paths), end="")
        print("\n".join(cost_lines(lines, paths, find_device(self.request.device))))

    def run(self) -> None:
        """Run or rehearse the cells, and say what to do next."""
        runs, spec, paths, tasks = self._planned()
        from bench.plan.state import Outcome, recorded, stale_text
        from bench.run.control import concluded, in_turns, speaks
        from bench.run.executors import Work

        if self.rehearse:
            self._conclude(self._rehearse(spec, tasks, paths), paths)
            return
        if speaks():
            print(stale_text(tasks, paths), end="", flush=True)
        elsewhere = recorded(tasks, paths)
        there = [Outcome(task, "done", cached=True) for task in tasks if task.cell.key() in elsewhere]
        left = [task for task in tasks if task.cell.key() not in elsewhere]

        def again() -> "list[Task]":
            fresh = left if self.cells or self.retry else planned(self.request, self.only)[2]
            return [task for task in fresh if task.cell.key() not in elsewhere]

        def run(part: "Sequence[Task]") -> "list[Outcome]":
            return runs.run(Work(part, paths, self.request))

        outcomes = concluded(lambda: [*there, *in_turns(left, again, run)], paths)
        if speaks() and spec.claims and any(outcome.status == "done" for outcome in outcomes):
            from bench.report.claims import judged
            from bench.report.collect import collect
            from bench.report.render.text import verdict_text

            print(verdict_text(judged(collect(spec, paths.records))))
        self._conclude(outcomes, paths)

    def _planned(self) -> "tuple[Executor, Grid, Paths, list[Task]]":
        """Return who runs what. Raises UserError when what is asked cannot be."""
        from bench.run.control import check_retry, chosen
        from bench.run.executors import Resources, find_executor

        check_retry(self.retry, self.rehearse or self.dry_run)
        self.request.prepare_process()
        if self.rehearse and (self.cells or self.executor != "local" or self.resources != Resources()):
            raise UserError(
                "--rehearse runs all cells, one after the other: leave out --cell, --executor and its options"
            )
        if self.rehearse and self.dry_run:
            raise UserError("--rehearse --dry-run: choose one; --dry-run says what the real run costs")
        runs = find_executor(self.executor, self.request.device, self.resources)
        spec, paths, tasks = planned(self.request, self.only)
        return runs, spec, paths, chosen(tasks, paths, self.cells, self.retry)

    def _missing(self, tasks: "Sequence[Task]", paths: "Paths") -> str:
        from bench.plan.state import missing_text

        return missing_text(tasks, paths, self.request.command("prepare"))

    def _conclude(self, outcomes: "Sequence[Outcome]", paths: "Paths") -> None:
        """Print the command that comes next, and end with exit code 1 when a cell has no result."""
        from bench.plan.graph import Missing, Waiting
        from bench.run.control import speaks

        bad = [outcome for outcome in outcomes if outcome.bad]
        if bad:
            lacking = [outcome.task for outcome in bad if isinstance(outcome.task, Missing)]
            said = self._missing(lacking, paths) if speaks() else ""
            said += self._instead(lacking, paths) if said and len(lacking) == len(outcomes) else ""
            print(said, end="", file=sys.stderr)
            raise typer.Exit(1)
        if any(outcome.status == "queued" for outcome in outcomes):
            if waiting := sum(isinstance(outcome.task, Waiting) for outcome in outcomes):
                print(f"{waiting} cells wait for trials: the same command submits them once these are done")
            print(f"{self.request.command('status')}  shows how far they are")
            print(f"{self.request.command('cancel')}  takes them out of the queue")
        elif speaks():
            more = ["--rehearse"] if self.rehearse else []
            print(f"{self.request.command('report', *more)}  makes tables and plots of them")
            self._check_evaluations(outcomes, paths)

    def _check_evaluations(self, outcomes: "Sequence[Outcome]", paths: "Paths") -> None:
        """Say which further evaluations of the cells are missing, and end with exit code 1 when one is."""
        from bench.plan.state import unevaluated_text

        if lacking := unevaluated_text([outcome.task for outcome in outcomes], paths):
            print(f"{lacking}`{self.request.command('evaluate')}` makes them", file=sys.stderr)
            raise typer.Exit(1)

    def _instead(self, tasks: "Sequence[Task]", paths: "Paths") -> str:
        """Return what cells cost of which none can run, and what can be run here and now."""
        from bench.core.device import find_device
        from bench.plan.estimate import cost_lines, estimated

        cost = cost_lines(estimated(tasks, paths), paths, find_device(self.request.device))[1:3]
        rows = [
            (self.request.command("run", "--rehearse"), "every cell in a few steps"),
            (Request("quickstart").command("run"), "minutes on two cores"),
            (Request("cifar_small").command("run"), "about an hour on two cores, once prepared"),
        ]
        return "\n".join([*cost, "here and now:", *(f"  {command}  {what}" for command, what in rows), ""])

    def _rehearse(self, spec: "Grid", tasks: "list[Task]", paths: "Paths") -> "list[Outcome]":
        """Rehearse a grid, say which of its `tasks` would fail here, and return what failed in the rehearsal."""
        from bench.core.device import find_device
        from bench.grid.expand import expand, rehearsed
        from bench.plan.rehearsal import lay_out, obstacles, stage

        short = rehearsed(spec)
        there = stage(paths, short.name)
        lay_out(expand(short), paths.data, there.data)
        device, limits = find_device(self.request.device), self.request.limits()
        workers = self.request.workers_for(device)

        def plan_short() -> "list[Task]":
            return tasks_of(short, self.only, there)

        outcomes = run_here(plan_short(), there, device, workers, limits, plan_short)
        reasons = obstacles(tasks, paths)
        for reason, stopped in reasons.items():
            print(f"{len(stopped)} of {len(tasks)} cells would fail: {reason}")
            for task in stopped:
                print(f"  {task.cell}")
        if not reasons:
            print(f"all {len(tasks)} cells have what they need here")
        return [outcome for outcome in outcomes if outcome.status not in {"done", "skipped"}]
