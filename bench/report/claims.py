"""Claims judged: an arm at a share of a baseline's cost is no worse than it, in every way of counting the cost."""

import math
import statistics
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from bench.core.stats import Answer, Family, Parts, interval, stands_apart
from bench.grid.cell import arm_name
from bench.grid.claims import Statement, statements
from bench.report.collect import Collected, Group, Result, may_be_baseline, pairs
from bench.report.costs import ALONE, LEDGERS, Currency, Ledgers
from bench.report.facts import linear
from bench.store.record import Finished

VERDICTS: dict[Answer, str] = {"yes": "reproduced", "no": "not reproduced", "undecided": "inconclusive"}
NO_BASELINE = "inconclusive: the baseline did not learn"
Bounds = tuple[float, float, float]  # mean, lower and upper one-sided bound


@dataclass(frozen=True)
class Judgement:
    """What became of a claim on a group's data, under one way of counting the cost.

    `difference` is arm minus baseline in accuracy as a share of the images, of n pairs, and `error` its standard error
    from having so many test images, None where their number is not known; `apart` is the seed whose difference the
    spread of the others does not explain. `ratio` is the arm's cost as a share of the baseline's, None where one of the
    two is not known. `verdict` is the one in the family of all claims, `alone` that of the claim by itself. `seeds`:
    pairs in all that would decide; None where it is decided, a thousand would not, or it is no question of seeds.
    """

    claim: Statement
    group: Group
    currency: Currency
    ledger: Ledgers
    n: int
    difference: Bounds | None
    error: float | None
    apart: int | None
    ratio: Bounds | None
    verdict: str
    alone: str
    seeds: int | None


@dataclass(frozen=True)
class _Case:
    """A claim on a group's data, with the results that it compares."""

    claim: Statement
    group: Group
    arm: Result | None
    baseline: Result | None

    @cached_property
    def paired(self) -> list[tuple[Finished, Finished]]:
        return pairs(self.arm, self.baseline)

    @cached_property
    def differences(self) -> list[float]:
        return [linear(one) - linear(other) for one, other in self.paired]

    def parts(self, costs: list[float]) -> Parts:
        """Return what is tested: the accuracy, and the logarithms of the costs where there are any."""
        accuracy = (self.differences, -self.claim.margin)
        if not costs or self.claim.share is None:
            return [accuracy]
        return [accuracy, ([-cost for cost in costs], -math.log(self.claim.share))]


@lru_cache(maxsize=1)  # the sections of a report ask one after the other
def judged(found: Collected) -> list[list[Judgement]]:
    """Return the judgements of the grid's claims: a list for each claim and group in which its arms run.

    All of them are one family in each way of counting the cost. Currencies that no record knows are left out, and so
    are the ledgers of a claim that says nothing about cost. A claim with fewer than two pairs of seeds is inconclusive.
    """
    cases = [
        _Case(_named(claim, sides(found, claim, group)[1]), group, *sides(found, claim, group))
        for claim in statements(found.grid)
        for group in found.groups
        if all(sides(found, claim, group)) and (claim.datasets is None or group.dataset in claim.datasets)
    ]
    columns = [_judged_in(found, cases, each, ledger) for ledger in LEDGERS for each in found.costs.currencies]
    return [
        [one for one in row if one.claim.share is not None or one.ledger == ALONE] for row in zip(*columns, strict=True)
    ]


def _judged_in(found: Collected, cases: list[_Case], currency: Currency, ledger: Ledgers) -> list[Judgement]:
    """Return the judgement of each claim in one way of counting the cost."""
    ratios = [found.costs.log_ratios(case.paired, currency, ledger) for case in cases]
    known = [[ratio for ratio in each if ratio is not None] if None not in each else [] for each in ratios]
    accuracy = Family([case.parts([]) for case in cases])
    measured = Family([case.parts(costs) for case, costs in zip(cases, known, strict=True)])
    judgements = []
    for index, case in enumerate(cases):
        price = _price(known[index], currency, case.claim)
        # A count has no error: it is compared with the share, and only the accuracy is tested.
        family = accuracy if currency.exact or case.claim.share is None else measured
        judgements.append(_judgement(case, index, family, currency, ledger, price))
    return judgements


def _judgement(
    case: _Case, index: int, family: Family, currency: Currency, ledger: Ledgers, price: Bounds | None
) -> Judgement:
    claim = case.claim
    accuracy, apart = interval(case.differences, claim.confidence), stands_apart(case.differences)
    affordable: Answer = "yes"
    if claim.share is not None and (price is None or currency.exact):
        affordable = "undecided" if price is None else "yes" if price[0] <= claim.share else "no"
    answer = _both(family.answer(index, claim.confidence), affordable)
    alone = _both(Family([family.claims[index]]).answer(0, claim.confidence), affordable)
    comparable = may_be_baseline(case.baseline)
    may_decide = affordable == "yes" or (accuracy is not None and accuracy.mean <= -claim.margin)
    return Judgement(
        claim=claim,
        group=case.group,
        currency=currency,
        ledger=ledger,
        n=len(case.paired),
        difference=(accuracy.mean, accuracy.low, accuracy.high) if accuracy else None,
        error=_error(case.paired),
        apart=None if apart is None else case.paired[apart][0].cell.seed,
        ratio=price,
        verdict=VERDICTS[answer] if comparable else NO_BASELINE,
        alone=VERDICTS[alone] if comparable else NO_BASELINE,
        seeds=family.seeds(index, claim.confidence) if answer == "undecided" and may_decide and comparable else None,
    )


def _both(accurate: Answer, affordable: Answer) -> Answer:
    return "no" if "no" in (accurate, affordable) else accurate if affordable == "yes" else "undecided"


def _error(paired: list[tuple[Finished, Finished]]) -> float | None:
    """Return the standard error of a difference in accuracy from having so many test images, at most.

    As if the two made their mistakes independently of each other; None where the number of images is not recorded.
    """
    images = [record.test_images for pair in paired for record in pair if record.test_images]
    if len(images) < 2 * len(paired) or not images:
        return None
    shares = [statistics.fmean(map(linear, side)) for side in zip(*paired, strict=True)]
    return math.sqrt(sum(share * (1 - share) for share in shares) / min(images))


def _named(claim: Statement, baseline: Result | None) -> Statement:
    """Return a claim beside the best of several arms with the name of that one, once it is known."""
    known = claim.best_of and baseline and baseline.done
    return claim.model_copy(update={"baseline": arm_name(baseline.arm)}) if known and baseline else claim


def sides(found: Collected, claim: Statement, group: Group) -> tuple[Result | None, Result | None]:
    """Return the results of the claim's arm and of its baseline, None where the grid does not plan one there."""
    arms = {arm_name(arm): arm for arm in found.grid.arms}
    names = claim.best_of or (claim.baseline,)
    there = [result for name in names if (result := found.find(group, arms[name], claim.baseline_budget))]
    baseline = _best(there) if claim.best_of and there else next(iter(there), None)
    return found.find(group, arms[claim.arm], claim.budget), baseline


def _best(tuned: list[Result]) -> Result:
    """Return the one whose chosen trial has the highest accuracy on the validation images, of equals the first.

    Until all trials are done that is not known: then nothing can be compared with it.
    """
    best = {id(each): each.trials.best for each in tuned if each.trials}
    if not any(best.values()) or any(each.trials and each.trials.missing for each in tuned):
        return replace(tuned[0], done=(), failed=())
    return max(tuned, key=lambda each: linear(trial) if (trial := best[id(each)]) else -1.0)


def _price(ratios: list[float], currency: Currency, claim: Statement) -> Bounds | None:
    """Return the cost as a share of the baseline's with its bounds: the geometric mean over the pairs."""
    if len(ratios) < 2:
        return None
    if currency.exact:
        mean = math.exp(statistics.fmean(ratios))
        return mean, mean, mean
    bounds = interval(ratios, claim.confidence)
    return (math.exp(bounds.mean), math.exp(bounds.low), math.exp(bounds.high)) if bounds else None
