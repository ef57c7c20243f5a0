"""From a request to its grid, study or tasks. Torch is imported where it is needed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import UserError
from bench.plan.request import Request

if TYPE_CHECKING:
    import torch

    from bench.core.paths import Paths
    from bench.grid.schema import Grid
    from bench.plan.graph import Task
    from bench.plan.state import Outcome
    from bench.toy.study import ToyGrid
    from bench.train.keeper import Limits


def toy_of(request: Request, only: str | None = None) -> "ToyGrid | None":
    """Return the study that is asked for, None if it is a grid with cells."""
    from bench.toy.study import find_toy

    toy = find_toy(request.grid, request.profile, request.settings)
    if toy and only is not None:
        raise UserError(f"--only {only}: {toy.name} has no cells; choose by --set, such as --set 'sigmas=[0.1]'")
    return toy


def planned(request: Request, only: str | None = None) -> "tuple[Grid, Paths, list[Task]]":
    """Return a grid, where its data and records lie, and its tasks. Raises UserError."""
    spec, paths = request.load()
    return spec, paths, tasks_of(spec, only, paths)


def tasks_of(spec: "Grid", only: str | None, paths: "Paths") -> "list[Task]":
    """Return the tasks of a grid, or of those of its cells that `--only` names and what these need."""
    from bench.grid.expand import expand, select

    cells = expand(spec)
    chosen = cells if only is None else select(cells, only)  # a mistake there is said before torch is imported
    from bench.plan.graph import plan

    return plan(cells, chosen, paths, f"grid {spec.name}")


def load_plugins(paths: list[Path] | None) -> None:
    from bench.core.registry import load_plugin

    for path in paths or []:
        load_plugin(path)


def run_here(
    tasks: "list[Task]",
    paths: "Paths",
    device: "torch.device",
    workers: int,
    limits: "Limits | None" = None,
    plan_again: "Callable[[], list[Task]] | None" = None,
) -> "list[Outcome]":
    """Run the tasks in this process, say what became of them, and return it."""
    from bench.run.control import concluded, in_turns
    from bench.run.progress import Display
    from bench.run.runner import run_tasks

    def run(part: "Sequence[Task]") -> "list[Outcome]":
        return run_tasks(part, paths, device, workers, Display(paths.mark), limits)

    return concluded(lambda: in_turns(tasks, plan_again or (lambda: tasks), run), paths)
