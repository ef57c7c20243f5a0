"""Claims judged: an arm at a share of a baseline's cost is no worse than it, in every way of counting the cost."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.grid import arm_name
from bench.report.collect import Collected, Group, Result, ledger_of, linear, pairs, phase_seconds, total_flops
from bench.report.tables import NONE, Entry, Table, percent
from bench.spec import Claim
from bench.stats import Answer, interval, seeds_to_decide
from bench.store import Record

VERDICTS: dict[Answer, str] = {"yes": "reproduced", "no": "not reproduced", "undecided": "inconclusive"}
WITHOUT, WITH = "training alone", "with making the targets"


@dataclass(frozen=True)
class Cost:
    """A currency under a ledger. `exact`: the same in every run of a cell, so that it has no spread to allow for."""

    currency: str
    ledger: str
    of: Callable[[Record], float]
    exact: bool = True


COSTS = (
    Cost("steps", WITHOUT, lambda record: ledger_of(record).steps),
    Cost("images", WITHOUT, lambda record: ledger_of(record).images),
    Cost("FLOP", WITHOUT, lambda record: ledger_of(record).flops),
    Cost("FLOP", WITH, total_flops),
    Cost("seconds", WITHOUT, lambda record: phase_seconds(record, "train") or math.nan, exact=False),
    Cost(
        "seconds",
        WITH,
        lambda record: (phase_seconds(record, "train") or math.nan) + (phase_seconds(record, "targets") or 0.0),
        exact=False,
    ),
)


@dataclass(frozen=True)
class Judgement:
    """What became of a claim on a group's data under one cost.

    `difference` is arm minus baseline in accuracy as a share of the images, (mean, low, high) of n pairs; `ratio` the
    arm's cost as a share of the baseline's, (mean, low, high). `seeds`: pairs in all that would decide; None where it
    is decided, or a thousand would not.
    """

    claim: Claim
    group: Group
    cost: Cost
    n: int
    difference: tuple[float, float, float] | None
    ratio: tuple[float, float, float] | None
    verdict: str
    seeds: int | None


def judge(found: Collected, claim: Claim, group: Group) -> list[Judgement]:
    """Return the claim's judgements on a group's data, one for each cost; none where its arms do not run there.

    Below two pairs of seeds all are inconclusive.
    """
    sides = _sides(found, claim, group)
    if not all(sides):
        return []
    paired = pairs(*sides)
    differences = [linear(one) - linear(other) for one, other in paired]
    accuracy = interval(differences, claim.confidence)
    judgements = []
    for cost in COSTS:
        ratios = [math.log(cost.of(one) / cost.of(other)) for one, other in paired]
        price = _price(ratios, cost, claim)
        if accuracy is None or price is None:
            judgements.append(Judgement(claim, group, cost, len(paired), None, None, VERDICTS["undecided"], None))
            continue
        good = accuracy.above(-claim.margin)
        cheap: Answer = "yes" if price[2] <= claim.share else "no" if price[1] > claim.share else "undecided"
        answer: Answer = "no" if "no" in (good, cheap) else "yes" if good == cheap == "yes" else "undecided"
        seeds = None
        if answer == "undecided":
            seeds = _seeds(differences, ratios, good, cheap, claim)
        judgements.append(
            Judgement(
                claim,
                group,
                cost,
                accuracy.n,
                (accuracy.mean, accuracy.low, accuracy.high),
                price,
                VERDICTS[answer],
                seeds,
            )
        )
    return judgements


def verdict_table(found: Collected) -> Table:
    """Return the judgements of the grid's claims; groups in which a claim's arms do not run are left out."""
    names = ("Claim", "Dataset", "Cost", "Verdict")
    head = (*names, "Accuracy, arm minus baseline", "Cost, share of the baseline's", "n", "Seeds")
    rows = []
    for claim in found.grid.claims:
        for group in found.groups:
            for one in judge(found, claim, group):
                rows.append(
                    (
                        Entry(claim.name),
                        Entry(group.label),
                        Entry(f"{one.cost.currency}, {one.cost.ledger}"),
                        Entry(one.verdict, bold=one.verdict != VERDICTS["undecided"]),
                        Entry(difference(one)),
                        Entry(_bounds(one.ratio, 100, ".1f", "%", exact=one.cost.exact)),
                        Entry(str(one.n)),
                        Entry("" if one.verdict != VERDICTS["undecided"] else str(one.seeds or NONE)),
                    )
                )
    return Table(head, tuple(rows), names=len(names))


def difference(judgement: Judgement) -> str:
    """Return by how many points the arm is above its baseline, with bounds."""
    return _bounds(judgement.difference, 100, "+.1f")


def claim_sentence(claim: Claim) -> str:
    """Return what a claim says, in words."""
    margin = f"{100 * claim.margin:g} point{'s' * (claim.margin != 0.01)}"
    return (
        f"{claim.arm} at {percent(claim.budget)} of the steps is at most {margin} of"
        f" linear accuracy below {claim.baseline} at {percent(claim.baseline_budget)}, at no more than"
        f" {percent(claim.share)} of its cost. Each bound has {percent(claim.confidence)} confidence."
    )


def _sides(found: Collected, claim: Claim, group: Group) -> tuple[Result | None, Result | None]:
    """Return the results of the claim's arm and of its baseline, None where the grid does not plan one there."""
    arms = {arm_name(arm): arm for arm in found.grid.arms}
    return (
        found.find(group, arms[claim.arm], claim.budget),
        found.find(group, arms[claim.baseline], claim.baseline_budget),
    )


def _bounds(
    values: tuple[float, float, float] | None, scale: float, form: str, unit: str = "", exact: bool = False
) -> str:
    if values is None:
        return NONE
    mean, low, high = (f"{scale * value:{form}}{unit}" for value in values)
    return mean if exact else f"{mean} ({low} to {high})"


def _price(ratios: list[float], cost: Cost, claim: Claim) -> tuple[float, float, float] | None:
    """Return the cost as a share of the baseline's with its bounds: the geometric mean over the pairs."""
    if not ratios or not all(map(math.isfinite, ratios)):
        return None
    if cost.exact:
        mean = math.exp(statistics.fmean(ratios))
        return mean, mean, mean
    found = interval(ratios, claim.confidence)
    return (math.exp(found.mean), math.exp(found.low), math.exp(found.high)) if found else None


def _seeds(differences: list[float], ratios: list[float], good: Answer, cheap: Answer, claim: Claim) -> int | None:
    """Return how many pairs would decide what is undecided."""
    needed = []
    if good == "undecided":
        needed.append(seeds_to_decide(differences, -claim.margin, claim.confidence))
    if cheap == "undecided":
        needed.append(seeds_to_decide(ratios, math.log(claim.share), claim.confidence))
    known = [n for n in needed if n is not None]
    return max(known) if len(known) == len(needed) else None
