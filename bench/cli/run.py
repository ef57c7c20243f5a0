"""The verb `run`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import (
    CellsOption,
    DataOption,
    GridArgument,
    JsonOption,
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
    from bench.run.executors import Executor, Resources
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what is done, what is to do, and its cost")] = False,
    cells: CellsOption = False,
    as_json: JsonOption = False,
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
    call = Call(request, resources, executor, only, tuple(cell or ()), tuple(retry or ()), rehearse, dry_run)
    call.start(cells, as_json)


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

    @property
    def shared(self) -> Request:
        """What other verbs are asked too."""
        asked = self.request
        return Request(asked.grid, asked.profile, asked.settings, asked.plugins, asked.data_root, asked.results)

    def start(self, cells: bool, as_json: bool) -> None:
        """Do what is asked: run a study or cells, or say what they cost, cell by cell or in JSON."""
        if (cells or as_json) and not self.dry_run:
            raise UserError("--cells and --json are for --dry-run and `status`")
        if toy := toy_of(self.shared, self.only):
            self.run_toy(toy, as_json)
        elif self.dry_run:
            self.estimate(cells, as_json)
        else:
            self.run()

    def run_toy(self, toy: "ToyGrid", as_json: bool) -> None:
        """Run a study, which has no cells."""
        from bench.run.executors import Resources
        from bench.toy.study import print_states, run_toy

        if self.cells or self.executor != "local" or self.resources != Resources():
            raise UserError(f"{toy.name} has settings instead of cells: leave out --cell, --executor and its options")
        if self.rehearse:
            print(f"{toy.name} takes seconds as it is: nothing to rehearse")
        elif self.dry_run:
            print_states(toy, self.request.results, as_json)
        else:
            run_toy(toy, self.request.results)
            print(f"{self.shared.command('report')}  makes a table and a plot of them")

    def estimate(self, cells: bool, as_json: bool) -> None:
        """Say what is done, what a run would do, and what it costs."""
        _, _, places, tasks = self._planned()
        from bench.core.device import find_device
        from bench.plan.estimate import cost_lines, estimated, print_estimate

        lines = estimated(tasks, places)
        if as_json:
            print(json.dumps([line.facts() for line in lines], indent=1))
            return
        print_estimate(lines, cells)
        lacking = [line.task for line in lines if line.kind == "missing"]
        print(self._missing(lacking, places), end="")
        print("\n".join(cost_lines(lines, places, find_device(self.request.device))))

    def run(self) -> None:
        """Run or rehearse the cells, and say what to do next."""
        runs, spec, places, tasks = self._planned()
        from bench.plan.state import Outcome, recorded
        from bench.run.control import concluded, in_turns, speaks
        from bench.run.executors import Work

        if self.rehearse:
            self._conclude(self._rehearse(spec, tasks, places), places)
            return
        elsewhere = recorded(tasks, places)
        there = [Outcome(task, "done", cached=True) for task in tasks if task.cell.key() in elsewhere]
        left = [task for task in tasks if task.cell.key() not in elsewhere]

        def again() -> "list[Task]":
            fresh = left if self.cells or self.retry else planned(self.shared, self.only)[2]
            return [task for task in fresh if task.cell.key() not in elsewhere]

        def run(part: "Sequence[Task]") -> "list[Outcome]":
            return runs.run(Work(part, places, self.request))

        outcomes = concluded(lambda: [*there, *in_turns(left, again, run)], places)
        if speaks() and spec.claims and any(outcome.status == "done" for outcome in outcomes):
            from bench.report.claims import judged
            from bench.report.collect import collect
            from bench.report.render.text import verdict_text

            print(verdict_text(judged(collect(spec, places.records))))
        self._conclude(outcomes, places)

    def _planned(self) -> "tuple[Executor, Grid, Places, list[Task]]":
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
        spec, places, tasks = planned(self.shared, self.only)
        return runs, spec, places, chosen(tasks, places, self.cells, self.retry)

    def _missing(self, tasks: "Sequence[Task]", places: "Places") -> str:
        from bench.plan.state import missing_text

        return missing_text(tasks, places, self.shared.command("prepare"))

    def _conclude(self, outcomes: "Sequence[Outcome]", places: "Places") -> None:
        """Print the command that comes next, and end with exit code 1 when a cell has no result."""
        from bench.plan.graph import Missing, Waiting
        from bench.run.control import speaks

        bad = [outcome for outcome in outcomes if outcome.bad]
        if bad:
            lacking = [outcome.task for outcome in bad if isinstance(outcome.task, Missing)]
            said = self._missing(lacking, places) if speaks() else ""
            said += self._instead(lacking, places) if said and len(lacking) == len(outcomes) else ""
            print(said, end="", file=sys.stderr)
            raise typer.Exit(1)
        if any(outcome.status == "queued" for outcome in outcomes):
            if waiting := sum(isinstance(outcome.task, Waiting) for outcome in outcomes):
                print(f"{waiting} cells wait for trials: the same command submits them once these are done")
            print(f"{self.shared.command('status')}  shows how far they are")
            print(f"{self.shared.command('cancel')}  takes them out of the queue")
        elif speaks():
            more = ["--rehearse"] if self.rehearse else []
            print(f"{self.shared.command('report', *more)}  makes tables and plots of them")

    def _instead(self, tasks: "Sequence[Task]", places: "Places") -> str:
        """Return what cells cost of which none can run, and what can be run here and now."""
        from bench.core.device import find_device
        from bench.plan.estimate import cost_lines, estimated

        cost = cost_lines(estimated(tasks, places), places, find_device(self.request.device))[1:3]
        rows = [
            (self.shared.command("run", "--rehearse"), "every cell in a few steps"),
            (Request("quickstart").command("run"), "minutes on two cores"),
            (Request("cifar_small").command("run"), "half an hour, once prepared"),
        ]
        return "\n".join([*cost, "here and now:", *(f"  {command}  {what}" for command, what in rows), ""])

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

        def plan_short() -> "list[Task]":
            return tasks_of(short, self.only, there)

        outcomes = run_here(plan_short(), there, device, workers, limits, plan_short)
        reasons = obstacles(tasks, places)
        for reason, stopped in reasons.items():
            print(f"{len(stopped)} of {len(tasks)} cells would fail: {reason}")
            for task in stopped:
                print(f"  {describe(task.cell)}")
        if not reasons:
            print(f"all {len(tasks)} cells have what they need here")
        return [outcome for outcome in outcomes if outcome.status not in {"done", "skipped"}]
