"""The claims of a grid: what it may say, and one statement for each arm and budget that a claim speaks of."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat

from bench.core.errors import did_you_mean
from bench.grid.base import Budget, Model, Name
from bench.grid.cell import Arm, arm_name, is_plain

if TYPE_CHECKING:
    from bench.grid.schema import Grid

EVERY = "*"  # each method, arm or budget there is
BEST = "best"  # as a baseline: of the tuned plain arms, the one whose chosen trial is best
SAME = ("method", "params", "backbone", "recipe")  # in an arm and the plain one that belongs to it
MARGIN, CONFIDENCE = 0.01, 0.95  # of a claim that does not say: share of the test images, of each bound


class Claim(Model):
    """An arm at a budget is no worse than a baseline, by more than `margin`, at no more than `share` of its cost.

    A margin below 0 asks for as much more. Arm "*": each with ReLA around it but the shuffled controls; budget "*":
    each of the arm's. Baseline "best": of the tuned plain arms of the arm's method, the one whose chosen trial has the
    highest accuracy on the validation images.
    """

    name: Name
    arm: str
    budget: Budget | Literal["*"]
    baseline: str | None = None  # None: the arm's method without ReLA
    baseline_budget: Budget | Literal["same"] = 1.0
    share: PositiveFloat | None = None  # None: nothing is said about cost
    margin: Annotated[float, Field(gt=-1, lt=1)] = MARGIN  # of the test images
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = CONFIDENCE  # of each bound
    datasets: Annotated[tuple[str, ...] | None, Field(strict=False)] = None  # None: all


class Statement(Claim):
    """A claim about one arm at one budget beside one baseline, or beside the best of several, which a report knows."""

    name: str
    budget: float
    baseline: str
    baseline_budget: float
    best_of: tuple[str, ...] = ()


def statements(grid: "Grid") -> list[Statement]:
    """Return what the claims of a grid say. Raises ValueError when one speaks of what the grid does not have."""
    return [each for index, claim in enumerate(grid.claims) for each in _statements(claim, grid, f"claims[{index}]")]


def plain_arm(arm: Arm, grid: "Grid") -> str | None:
    """Return the name of the arm that is an arm without ReLA: the same method, backbone and recipe, tuned or not."""
    for other in filter(is_plain, grid.arms):
        tuned = [arm_name(each) in grid.tuned for each in (arm, other)]
        if tuned[0] == tuned[1] and all(getattr(arm, key) == getattr(other, key) for key in SAME):
            return arm_name(other)
    return None


def _best_of(arm: Arm, grid: "Grid", budget: float) -> tuple[str, ...]:
    """Return the names of the plain arms of an arm's method and backbone that are tuned and have a budget."""
    plain = [each for each in grid.arms if is_plain(each) and arm_name(each) in grid.tuned]
    same = [each for each in plain if (each.method, each.backbone) == (arm.method, arm.backbone)]
    return tuple(arm_name(each) for each in same if budget in (each.budgets or grid.budgets))


def _statements(claim: Claim, grid: "Grid", where: str) -> Iterator[Statement]:
    arms = {arm_name(arm): arm for arm in grid.arms}
    datasets = [dataset.name for dataset in grid.datasets]
    for name in claim.datasets or ():
        if name not in datasets:
            raise ValueError(f"{where}.datasets: {name!r} is no dataset of the grid{did_you_mean(name, datasets)}")
    for key, named in (("arm", claim.arm), ("baseline", claim.baseline)):
        if named is not None and named not in arms and (key, named) not in {("arm", EVERY), ("baseline", BEST)}:
            raise ValueError(f"{where}.{key}: {named!r} is no arm{did_you_mean(named, arms)}")
    accelerated = [name for name, arm in arms.items() if arm.rela and not arm.rela.shuffle]
    chosen = accelerated if claim.arm == EVERY else [claim.arm]
    if not chosen:
        raise ValueError(f"{where}.arm: no arm of the grid has ReLA around it; name one")
    for name in chosen:
        named = claim.baseline or plain_arm(arms[name], grid)
        if named is None:
            raise ValueError(f"{where}: arm {name!r} has no arm without ReLA beside it; name a baseline")
        for budget in (arms[name].budgets or grid.budgets) if isinstance(claim.budget, str) else [claim.budget]:
            baseline_budget = budget if isinstance(claim.baseline_budget, str) else claim.baseline_budget
            best_of = () if named in arms else _best_of(arms[name], grid, baseline_budget)
            if named not in arms and not best_of:
                why = f"no plain arm of {arms[name].method!r} at budget {baseline_budget:g} is tuned"
                raise ValueError(f"{where}.baseline: {BEST!r}: {why}; add one to `tune`, or name a baseline")
            for side, share in ((name, budget), *(() if best_of else [(named, baseline_budget)])):
                if share not in (arms[side].budgets or grid.budgets):
                    raise ValueError(f"{where}: arm {side!r} has no budget {share:g}; give it one")
            said = {"arm": name, "budget": budget, "baseline": named, "baseline_budget": baseline_budget}
            said |= {"best_of": best_of}
            title = f"{claim.name}: {name}" if len(chosen) > 1 else claim.name
            yield Statement.model_construct(**claim.model_dump() | said | {"name": title})
