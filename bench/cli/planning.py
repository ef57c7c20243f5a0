"""From what a verb is asked to the grid, study or tasks that are meant. Torch is imported where it is needed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.request import Request
from bench.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from bench.core.paths import Places
    from bench.grid.schema import Grid
    from bench.plan.graph import Task
    from bench.plan.state import Outcome
    from bench.toy.study import ToyGrid
    from bench.train.keeper import Limits


def toy_of(request: Request, only: str | None = None) -> "ToyGrid | None":
    """Return the study that is asked for, None when it is a grid with cells."""
    from bench.toy.study import find_toy

    toy = find_toy(request.grid, request.profile, request.settings)
    if toy and only is not None:
        raise UserError(f"--only {only}: {toy.name} has no cells; choose by --set, such as --set 'sigmas=[0.1]'")
    return toy


def planned(request: Request, only: str | None = None) -> "tuple[Grid, Places, list[Task]]":
    from bench.core.paths import Places
    from bench.plan.load import load_grid

    spec = load_grid(request.grid, request.profile, request.settings)
    places = Places(data=request.data_root or Path("data"), results=request.results, grid=spec.name)
    return spec, places, tasks_of(spec, only, places)


def tasks_of(spec: "Grid", only: str | None, places: "Places") -> "list[Task]":
    """Return the tasks of a grid, or of those of its cells that `--only` names and what these need."""
    from bench.grid.expand import expand, select

    cells = expand(spec)
    chosen = cells if only is None else select(cells, only)  # a mistake there is said before torch is imported
    from bench.plan.graph import plan

    return plan(cells, chosen, places, f"grid {spec.name}")


def load_plugins(paths: list[Path] | None) -> None:
    from bench.core.registry import load_plugin

    for path in paths or []:
        load_plugin(path)


def run_here(
    tasks: "list[Task]",
    places: "Places",
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
        return run_tasks(part, places, device, workers, Display(places.mark), limits)

    return concluded(lambda: in_turns(tasks, plan_again or (lambda: tasks), run), places)
