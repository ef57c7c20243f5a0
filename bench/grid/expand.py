"""Grid to cells: datasets x arms x budgets x seeds, all of them, some, or rehearsed ones."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product

from bench.core.errors import UserError, did_you_mean
from bench.grid.cell import Cell, Knn, Probe, Protocol, Tuning
from bench.grid.schema import Grid
from bench.grid.tune import trials_of

REHEARSAL = "@rehearsal"  # ends the name of a rehearsed grid
REHEARSED = Protocol(epochs=2, batch_size=2, probe=Probe(epochs=3, batch_size=2), knn=Knn(k=1))
ROOM = ("input_size", "eval_resize", "blur")  # what a rehearsal keeps of the protocol
# What `--only` chooses by.
FACTS: dict[str, Callable[[Cell], str | float]] = {
    "dataset": lambda cell: cell.dataset,
    "arm": lambda cell: cell.arm,
    "method": lambda cell: cell.method,
    "prior": lambda cell: cell.targets_of.prior if cell.targets_of else "none",
    "budget": lambda cell: cell.budget,
    "seed": lambda cell: float(cell.seed),
}


def expand(grid: Grid) -> list[Cell]:
    """Return the grid's cells in the order datasets, arms, budgets, seeds; before tuned ones, their trials."""
    cells = []
    for dataset in grid.datasets:
        for arm in grid.arms_on(dataset):
            protocol = grid.protocol_on(dataset, arm)
            for budget, seed in product(arm.budgets or grid.budgets, grid.seeds):
                cells.append(grid.cell(dataset, protocol, arm, budget, seed))
    if grid.name.endswith(REHEARSAL):
        cells = [cell.model_copy(update={"train_images": _images(cell.budget, cell.tuned)}) for cell in cells]
    first = grid.seeds[0]
    return [each for cell in cells for each in (*(trials_of(cell) if cell.seed == first else ()), cell)]


def rehearsed(grid: Grid) -> Grid:
    """Return the grid with a handful of steps: the same cells of one seed, each with one batch an epoch."""
    smallest = min(budget for arm in grid.arms for budget in arm.budgets or grid.budgets)
    datasets = [
        dataset.model_copy(
            update={
                "train_images": _images(smallest),
                "protocol": {key: value for key, value in dataset.protocol.items() if key in ROOM},
            }
        )
        for dataset in grid.datasets
    ]
    return grid.model_copy(
        update={
            "name": grid.name + REHEARSAL,
            "title": f"REHEARSAL of: {grid.title or grid.name}",
            "seeds": grid.seeds[:1],
            "datasets": tuple(datasets),
            # On two images, a step at a rate that was chosen for a whole batch can end in NaN.
            "recipes": {
                method: {key: value for key, value in recipe.items() if key != "lr"}
                for method, recipe in grid.recipes.items()
            },
            "protocol": REHEARSED.model_copy(
                update={key: getattr(grid.protocol, key) for key in ROOM}
                | {"evaluate": tuple(each.rehearsed() for each in grid.protocol.evaluate)}
            ),
        }
    )


def _images(budget: float, tuned: Tuning | None = None) -> int:
    """Return how many training images are one batch an epoch of a rehearsal, also without those that judge trials."""
    batch = math.ceil(REHEARSED.batch_size / budget - 1e-9)
    return math.ceil((batch + 1) / (1 - tuned.validation)) if tuned else batch


def select(cells: Iterable[Cell], expression: str) -> list[Cell]:
    """Return the cells that `--only` names: comma-separated KEY=VALUE, all of which must hold.

    Keys: dataset, arm, method, prior, budget, seed. A key may be repeated: any of its values will do. Commas in a name
    belong to it. Raises UserError when the expression is not one, or matches nothing.
    """
    cells = list(cells)
    there = {key: {fact(cell) for cell in cells} for key, fact in FACTS.items()}
    wanted: dict[str, set[str | float]] = {}
    for key, text in _pairs(expression, {key: set(map(str, values)) for key, values in there.items()}):
        try:
            value = float(text) if key in {"budget", "seed"} else text
        except ValueError as error:
            raise UserError(f"--only {expression}: {key} is a number, not {text!r}") from error
        if value not in there[key]:
            known = did_you_mean(str(value), map(str, there[key]))
            raise UserError(f"--only {expression}: no cell has {key}={value}{known}")
        wanted.setdefault(key, set()).add(value)
    chosen = [cell for cell in cells if all(FACTS[key](cell) in values for key, values in wanted.items())]
    if not chosen:
        raise UserError(f"--only {expression}: no cell has all of these together")
    return chosen


def _pairs(expression: str, names: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yield keys and values. A value is the longest known name, else all up to the next KEY=."""
    end = rf"\s*(?:$|,(?=\s*(?:{'|'.join(FACTS)})\s*=))"
    rest = expression
    while True:
        key, equals, rest = rest.partition("=")
        key = key.strip()
        if not equals or key not in FACTS:
            part = f"{key}{equals}{rest.partition(',')[0].strip()}"
            raise UserError(f"--only {expression}: {part!r} is not KEY=VALUE{did_you_mean(key, FACTS)}")
        known = "|".join(map(re.escape, sorted(names[key], key=len, reverse=True)))
        match = re.match(rf"\s*?({known}|.*?){end}", rest, re.DOTALL)
        assert match
        value = match[1] if match[1] in names[key] else match[1].strip()
        name, comma, odd = value.partition(",")
        if comma and value not in names[key] and name.strip() in names[key] and (not odd.strip() or "=" in odd):
            raise UserError(
                f"--only {expression}: {odd!r} is not KEY=VALUE{did_you_mean(odd.partition('=')[0], FACTS)}"
            )
        yield key, value
        if match.end() == len(rest):
            return
        rest = rest[match.end() :]
