"""Grid to cells: datasets x arms x budgets x seeds, all of them, some, or rehearsed ones."""

import math
import re
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from bench.core.errors import UserError, did_you_mean
from bench.grid.schema import Arm, Cell, Dataset, Grid, Knn, Probe, Protocol, arm_name

REHEARSAL = "@rehearsal"  # ends the name of a rehearsed grid
REHEARSED = Protocol(epochs=2, batch_size=2, probe=Probe(epochs=3, batch_size=2), knn=Knn(k=1))
KEYS = ("dataset", "arm", "method", "prior", "budget", "seed")  # of `--only`
ROOM = ("input_size", "eval_resize", "blur")  # what a rehearsal keeps of the protocol


def rehearsed(grid: Grid) -> Grid:
    """Return the grid with a handful of steps: the same cells of one seed, each with one batch an epoch."""
    smallest = min(budget for arm in grid.arms for budget in arm.budgets or grid.budgets)
    datasets = tuple(
        dataset.model_copy(
            update={
                "train_images": _one_batch(smallest),
                "protocol": {key: value for key, value in dataset.protocol.items() if key in ROOM},
            }
        )
        for dataset in grid.datasets
    )
    return grid.model_copy(
        update={
            "name": grid.name + REHEARSAL,
            "title": f"REHEARSAL of: {grid.title or grid.name}",
            "seeds": grid.seeds[:1],
            "datasets": datasets,
            "protocol": REHEARSED.model_copy(update={key: getattr(grid.protocol, key) for key in ROOM}),
        }
    )


def _one_batch(budget: float) -> int:
    """Return how many training images are one batch an epoch of a rehearsal."""
    return math.ceil(REHEARSED.batch_size / budget - 1e-9)


def expand(grid: Grid) -> list[Cell]:
    """Return the grid's cells in the order datasets, arms, budgets, seeds."""
    cells = []
    for dataset in grid.datasets:
        protocol = protocol_of(grid, dataset)
        for arm in arms_on(grid, dataset):
            for budget, seed in product(arm.budgets or grid.budgets, grid.seeds):
                cells.append(cell_of(grid, dataset, protocol, arm, budget, seed))
    return cells


def cell_of(grid: Grid, dataset: Dataset, protocol: Protocol, arm: Arm, budget: float, seed: int) -> Cell:
    """Return the cell of an arm of the grid at a budget with a seed."""
    return Cell(
        arm=arm_name(arm),
        dataset=dataset.name,
        train_images=_one_batch(budget) if grid.name.endswith(REHEARSAL) else dataset.train_images,
        backbone=arm.backbone or dataset.backbone or grid.backbone,
        method=arm.method,
        params={**grid.params.get(arm.method, {}), **arm.params},
        rela=arm.rela,
        flops_of=arm.flops_of,
        budget=budget,
        seed=seed,
        protocol=protocol,
    )


def arms_on(grid: Grid, dataset: Dataset) -> list[Arm]:
    """Return the arms that run on a dataset of the grid."""
    return [arm for arm in grid.arms if dataset.arms is None or arm_name(arm) in dataset.arms]


def protocol_of(grid: Grid, dataset: Dataset) -> Protocol:
    """Return the grid's protocol with the dataset's own overrides. Raises ValidationError."""
    return Protocol.model_validate(merge(grid.protocol.model_dump(), dataset.protocol))


def select(cells: Iterable[Cell], expression: str) -> list[Cell]:
    """Return the cells that `--only` names: comma-separated KEY=VALUE, all of which must hold.

    Keys: dataset, arm, method, prior, budget, seed. A key may be repeated: any of its values will do. Commas in a name
    belong to it. Raises UserError when the expression is not one, or matches nothing.
    """
    cells = list(cells)
    facts: list[dict[str, str | float]] = [
        {
            "dataset": cell.dataset,
            "arm": cell.arm,
            "method": cell.method,
            "prior": cell.rela.prior if cell.rela else "none",
            "budget": cell.budget,
            "seed": float(cell.seed),
        }
        for cell in cells
    ]
    wanted: dict[str, set[str | float]] = {}
    for key, value in _pairs(expression, {key: {str(fact[key]) for fact in facts} for key in KEYS}):
        try:
            wanted.setdefault(key, set()).add(float(value) if key in {"budget", "seed"} else value)
        except ValueError as error:
            raise UserError(f"--only {expression}: {key} is a number, not {value!r}") from error
    for key, values in wanted.items():
        there = {fact[key] for fact in facts}
        for absent in values - there:
            raise UserError(
                f"--only {expression}: no cell has {key}={absent}{did_you_mean(str(absent), map(str, there))}"
            )
    chosen = [cell for cell, fact in zip(cells, facts, strict=True) if all(fact[k] in v for k, v in wanted.items())]
    if not chosen:
        raise UserError(f"--only {expression}: no cell has all of these together")
    return chosen


def _pairs(expression: str, names: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yield keys and values. A value is the longest known name, else all up to the next KEY=."""
    end = rf"\s*(?:$|,(?=\s*(?:{'|'.join(KEYS)})\s*=))"
    rest = expression
    while True:
        key, equals, rest = rest.partition("=")
        key = key.strip()
        if not equals or key not in KEYS:
            part = f"{key}{equals}{rest.partition(',')[0].strip()}"
            raise UserError(f"--only {expression}: {part!r} is not KEY=VALUE{did_you_mean(key, KEYS)}")
        known = "|".join(map(re.escape, sorted(names[key], key=len, reverse=True)))
        match = re.match(rf"\s*?({known}|.*?){end}", rest, re.DOTALL)
        assert match
        value = match[1] if match[1] in names[key] else match[1].strip()
        name, comma, odd = value.partition(",")
        if comma and value not in names[key] and name.strip() in names[key] and (not odd.strip() or "=" in odd):
            raise UserError(f"--only {expression}: {odd!r} is not KEY=VALUE{did_you_mean(odd.partition('=')[0], KEYS)}")
        yield key, value
        if match.end() == len(rest):
            return
        rest = rest[match.end() :]


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; anything else is replaced."""
    merged = dict(base)
    for key, value in override.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
