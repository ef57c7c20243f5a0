"""Tuning: which arms of a grid have their recipe chosen by trials, and the cells that these are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from bench.core.errors import did_you_mean
from bench.grid.base import Option
from bench.grid.cell import Arm, Cell, Recipe, Tuning, Validation, arm_name
from bench.grid.validate import sentence

if TYPE_CHECKING:
    from bench.grid.schema import Grid

RANGES = ("lr", "momentum", "weight_decay", "warmup")  # keys of Recipe that are numbers
BY_FACTOR = ("lr", "weight_decay")  # of these, a value and its double are as far apart wherever they lie


class Tune(Tuning):
    """A grid's `tune`: how recipes are chosen, and of which arms."""

    arms: Annotated[tuple[str, ...] | None, Field(strict=False)] = None  # None: all

    def names(self, arms: Sequence[Arm]) -> frozenset[str]:
        """Return the names of those of a grid's arms whose recipes are chosen."""
        return frozenset(map(arm_name, arms) if self.arms is None else self.arms)

    def tuning(self) -> Tuning:
        """Return how they are chosen."""
        return Tuning.model_validate(self.model_dump(exclude={"arms"}))


def points(tuning: Tuning) -> list[dict[str, Option]]:
    """Return the recipes of the trials: quasi-random points of the space (a scrambled Halton sequence, by its seed)."""
    from numpy.random import default_rng
    from scipy.stats import qmc  # takes a while, and most grids are not tuned

    names = sorted(tuning.space)
    unit = qmc.Halton(len(names), seed=default_rng(tuning.seed)).random(tuning.trials)
    return [
        {name: _at(name, tuning.space[name], u) for name, u in zip(names, row, strict=True)} for row in unit.tolist()
    ]


def _at(name: str, options: Sequence[Any], u: float) -> Option:
    """Return the value at a share of the way through a range, to four digits, or through a list."""
    low, high = options[0], options[-1]
    if name not in RANGES:
        value = options[int(u * len(options))]
    else:
        value = low * (high / low) ** u if name in BY_FACTOR and low > 0 else low + u * (high - low)
        value = min(max(float(f"{value:.4g}"), low), high)
    found: Option = value
    return found


def trial_name(arm: str, number: int) -> str:
    """Return what an arm's trial is called, the first being 1."""
    return f"{arm}, trial {number}"


def arm_or_trials(cell: Cell) -> str:
    """Return what a table calls a cell that it shows with others: its arm, or all trials of one."""
    return f"{cell.arm.rpartition(', trial ')[0]}: trials" if cell.validation else cell.arm


def trials_of(cell: Cell) -> list[Cell]:
    """Return the trials that choose a cell's recipe, in their order; [] of a cell that is not tuned.

    They are the same for all seeds, and evaluated at their end alone.
    """
    if cell.tuned is None:
        return []
    held = Validation(share=cell.tuned.validation, seed=cell.tuned.seed)
    once = {"evaluate_at": (1.0,), "evaluations": None, "probe": cell.protocol.probe.model_copy(update={"seeds": 1})}
    shared = {"seed": cell.tuned.seed, "tuned": None, "validation": held}
    return [
        cell.model_copy(
            update=shared
            | {"arm": trial_name(cell.arm, number), "protocol": cell.protocol.model_copy(update=once | point)}
        )
        for number, point in enumerate(points(cell.tuned), start=1)
    ]


def check_tuning(tune: Tune, grid: "Grid") -> None:
    """Raise ValueError when a grid cannot be tuned so."""
    arms = {arm_name(arm): arm for arm in grid.arms}
    if tune.seed in grid.seeds:
        raise ValueError(f"tune.seed: {tune.seed} is a seed of the grid; choose one that only the trials have")
    for name in sorted(tune.names(grid.arms)):
        if name not in arms:
            raise ValueError(f"tune.arms: {name!r} is no arm{did_you_mean(name, arms)}")
        for number in range(1, tune.trials + 1):
            if trial_name(name, number) in arms:
                raise ValueError(f"arm {trial_name(name, number)!r} has the name of a trial; rename it")
        if arms[name].matches:
            raise ValueError(
                f"tune.arms: {name!r} ends at what another arm took (flops_of, seconds_of), and trials of it cannot;"
                " name the arms to tune without it"
            )
    for key, options in tune.space.items():
        _check_space(key, options)
    for index, dataset in enumerate(grid.datasets):
        for arm in grid.arms_on(dataset):
            if arm_name(arm) in tune.names(grid.arms):
                _check_trials(grid.cell(dataset, grid.protocol_on(dataset, arm), arm, 1.0, grid.seeds[0]), index)


def _check_space(key: str, options: Sequence[Option]) -> None:
    """Raise ValueError unless a key of the space is one of a recipe, and has values to choose from."""
    where = f"tune.space.{key}"
    if key not in Recipe.model_fields:
        raise ValueError(f"{where}: no key of a recipe{did_you_mean(key, Recipe.model_fields)}")
    numbers = [each for each in options if isinstance(each, float) and not isinstance(each, bool)]
    if key in RANGES and not (len(options) == len(numbers) == 2 and numbers[0] < numbers[1]):
        raise ValueError(f"{where}: must be the lowest and the highest value, such as [0.0001, 0.01]")
    if key not in RANGES and (len(options) < 2 or len(set(options)) < len(options)):
        raise ValueError(f"{where}: must be two or more values, each once; set it in `protocol` if it has but one")
    for value in options:
        try:
            Recipe.model_validate({key: value})
        except ValidationError as error:
            raise ValueError(sentence(error, Recipe, "tune.space")) from error


def _check_trials(cell: Cell, dataset: int) -> None:
    """Raise ValueError unless the trials of a cell are allowed, and differ."""
    trials = trials_of(cell)
    for trial in trials:
        try:
            type(trial.protocol).model_validate(trial.protocol.model_dump())
        except ValidationError as error:
            raise ValueError(
                sentence(error, type(trial.protocol), f"datasets[{dataset}], arm {trial.arm!r}")
            ) from error
    if (there := len({trial.key() for trial in trials})) < len(trials):
        raise ValueError(
            f"tune.trials: of {len(trials)} trials of arm {cell.arm!r} only {there} differ; ask for fewer, or for a"
            " larger space"
        )
