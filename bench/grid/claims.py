"""The claims of a grid, spelled out: one statement for each arm and budget that a claim speaks of."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.core.errors import UserError, did_you_mean
from bench.grid.schema import EVERY, Arm, Claim, Grid, arm_name, is_plain


@dataclass(frozen=True)
class Statement:
    """A claim about one arm at one budget beside one baseline; without a `share` it says nothing about cost."""

    name: str
    arm: str
    budget: float
    baseline: str
    baseline_budget: float
    share: float | None
    margin: float
    confidence: float
    datasets: tuple[str, ...] | None


def statements(grid: Grid) -> list[Statement]:
    """Return what the claims of a grid say. Raises UserError when one speaks of what the grid does not have."""
    arms = {arm_name(arm): arm for arm in grid.arms}
    found = []
    for index, claim in enumerate(grid.claims):
        where = f"claims[{index}]"
        for name in claim.datasets or ():
            known = [dataset.name for dataset in grid.datasets]
            if name not in known:
                raise UserError(f"{where}.datasets: {name!r} is no dataset of the grid{did_you_mean(name, known)}")
        there = list(_statements(claim, arms, grid, where))
        if not there:
            raise UserError(f"{where}.arm: no arm of the grid has ReLA around it; name one")
        found += there
    return found


def plain_arm(arm: Arm, arms: dict[str, Arm]) -> str | None:
    """Return the name of the arm that is an arm without ReLA: the same method on the same backbone."""
    for name, other in arms.items():
        same = (arm.method, arm.params, arm.backbone) == (other.method, other.params, other.backbone)
        if same and is_plain(other):
            return name
    return None


def _statements(claim: Claim, arms: dict[str, Arm], grid: Grid, where: str) -> Iterator[Statement]:
    if claim.arm != EVERY and claim.arm not in arms:
        raise UserError(f"{where}.arm: {claim.arm!r} is no arm{did_you_mean(claim.arm, arms)}")
    if claim.baseline is not None and claim.baseline not in arms:
        raise UserError(f"{where}.baseline: {claim.baseline!r} is no arm{did_you_mean(claim.baseline, arms)}")
    accelerated = [name for name, arm in arms.items() if arm.rela and not arm.rela.shuffle]
    chosen = accelerated if claim.arm == EVERY else [claim.arm]
    for name in chosen:
        baseline = claim.baseline or plain_arm(arms[name], arms)
        if baseline is None:
            raise UserError(f"{where}: arm {name!r} has no arm without ReLA beside it; name a baseline")
        for budget in (arms[name].budgets or grid.budgets) if isinstance(claim.budget, str) else [claim.budget]:
            baseline_budget = budget if isinstance(claim.baseline_budget, str) else claim.baseline_budget
            for side, share in ((name, budget), (baseline, baseline_budget)):
                if share not in (arms[side].budgets or grid.budgets):
                    raise UserError(f"{where}: arm {side!r} has no budget {share:g}; give it one")
            yield Statement(
                name=claim.name + (f": {name}" if len(chosen) > 1 else ""),
                arm=name,
                budget=budget,
                baseline=baseline,
                baseline_budget=baseline_budget,
                share=claim.share,
                margin=claim.margin,
                confidence=claim.confidence,
                datasets=claim.datasets,
            )
