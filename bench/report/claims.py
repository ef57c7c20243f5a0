"""Claims judged: an arm at a share of a baseline's cost is no worse than it, in every way of counting the cost."""

import math
import statistics
from dataclasses import dataclass
from functools import cached_property

from bench.core.stats import APART, Answer, Family, Parts, interval, stands_apart
from bench.grid.claims import Statement, statements
from bench.grid.schema import arm_name
from bench.report.collect import Collected, Group, Result, may_be_baseline, pairs
from bench.report.costs import ALONE, FLOP, JOULES, LEDGERS, PRIOR, SECONDS, TARGETS, Costs, Currency, Ledgers
from bench.report.facts import linear
from bench.report.labels import percent
from bench.report.origin import counted
from bench.report.tables import NONE, Entry, Table, number
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


def judged(found: Collected) -> list[list[Judgement]]:
    """Return the judgements of the grid's claims: a list for each claim and group in which its arms run.

    All of them are one family in each way of counting the cost. Currencies that no record knows are left out, and so
    are the ledgers of a claim that says nothing about cost. A claim with fewer than two pairs of seeds is inconclusive.
    """
    cases = [
        _Case(claim, group, *_sides(found, claim, group))
        for claim in statements(found.grid)
        for group in found.groups
        if all(_sides(found, claim, group)) and (claim.datasets is None or group.dataset in claim.datasets)
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


def verdict_table(claims: list[list[Judgement]]) -> Table:
    """Return the judgements of claims: a row for each ledger, a column for each currency."""
    currencies = list(dict.fromkeys(one.currency for judgements in claims for one in judgements))
    names = ("Claim", "Dataset", "Ledger")
    head = (*names, "Accuracy, arm minus baseline", *(currency.value for currency in currencies), "n", "Seeds")
    rows = []
    for judgements in claims:
        for ledger in LEDGERS:
            there = {one.currency: one for one in judgements if one.ledger == ledger}
            if not there:
                continue
            first = next(iter(there.values()))
            seeds = [one.seeds for one in there.values() if one.verdict == VERDICTS["undecided"]]
            rows.append(
                (
                    *map(Entry, (first.claim.name, first.group.label, ledger if first.claim.share is not None else "")),
                    Entry(difference(first), "" if first.apart is None else f"seed {first.apart} apart"),
                    *(_verdict(there[currency]) for currency in currencies),
                    Entry(str(first.n)),
                    Entry("" if not seeds else NONE if None in seeds else str(max(s for s in seeds if s))),
                )
            )
    return Table(head, tuple(rows), names=len(names))


def targets_table(found: Collected) -> Table:
    """Return whether making the targets costs more than the grid's `targets_share` of the plain method's training."""
    limit = found.grid.targets_share
    assert limit is not None
    currencies = [currency for currency in found.costs.currencies if currency in (FLOP, SECONDS, JOULES)]
    head = ("Dataset", "Arm", *(f"Targets, share of {currency.value}" for currency in currencies), "n")
    rows = []
    for group in found.groups:
        for family in found.families:
            star = found.find(group, family.plain, 1.0)
            for arm in family.others:
                results = found.done_of(group, arm) if arm.rela else []
                paired = pairs(results[0], star) if results else []
                if not paired:
                    continue
                entries = []
                for currency in currencies:
                    shares = [_targets_share(found.costs, currency, *pair) for pair in paired]
                    known = [share for share in shares if share is not None]
                    if len(known) < len(shares):
                        entries.append(Entry(NONE))
                        continue
                    mean = statistics.fmean(known)
                    verdict = VERDICTS["yes" if mean <= limit else "no"]
                    entries.append(Entry(verdict, f"({_share(mean)})", True, value=mean))
                rows.append((Entry(group.label), Entry(results[0].label), *entries, Entry(str(len(paired)))))
    return Table(head, tuple(rows), names=2)


def rooms(found: Collected, claims: list[list[Judgement]]) -> list[str]:
    """Return, for each claim that holds with targets, what a prior of unknown training may have cost for it to hold."""
    lines = []
    for judgements in claims:
        by = {(one.ledger, one.currency): one for one in judgements}
        with_targets, with_prior = by.get((TARGETS, FLOP)), by.get((PRIOR, FLOP))
        if not with_targets or not with_prior or with_prior.ratio or with_targets.verdict != VERDICTS["yes"]:
            continue
        claim = with_targets.claim
        paired = pairs(*_sides(found, claim, with_targets.group))
        spent = [[found.costs.of(record, FLOP, TARGETS) or 0.0 for record in pair] for pair in paired]
        room = statistics.fmean((claim.share or 0.0) * baseline - arm for arm, baseline in spent)
        share = room / statistics.fmean(baseline for _, baseline in spent)
        lines.append(
            f"{claim.name}, {with_targets.group.label}: the training of the prior is not known. The claim holds while a"
            f" cell's part of it is at most {number(room / 1e12)} TFLOP, {_share(share)} of what the baseline took"
            f" (mean, n={len(paired)})."
        )
    return lines


def claim_sentence(claim: Statement) -> str:
    """Return what a claim says, in words."""
    points = abs(round(100 * claim.margin, 4))
    amount = f"{points:g} point{'s' * (points != 1)} of linear accuracy"
    level = f"at most {amount} below" if claim.margin > 0 else f"at least {amount} above" if claim.margin else "above"
    cost = f", at no more than {percent(claim.share)} of its cost" if claim.share is not None else ""
    return (
        f"{claim.arm} at {percent(claim.budget)} of the steps is {level} {claim.baseline} at"
        f" {percent(claim.baseline_budget)}{cost}. Each bound has {percent(claim.confidence)} confidence."
    )


def certainty(claims: list[list[Judgement]]) -> str:
    """Return what the verdicts allow for, and what they do not."""
    confidence = min(one.claim.confidence for each in claims for one in each)
    errors = [one.error for each in claims for one in each if one.error]
    size = f", which add a standard error of up to {100 * max(errors):.1f} points," if errors else ""
    text = (
        f"The {counted(len(claims), 'claim')} of this grid are judged together, by Holm's method: in each way of"
        " counting the cost, the chance that any of them is wrongly called reproduced is at most"
        f" {percent(round(1 - confidence, 9))}, and so is that of any wrong 'not reproduced'. 'Alone' is what a claim"
        " would be called by itself; bounds are of the single claim. All of this is about training seeds alone: it says"
        f" nothing of other test images{size} nor of other training images."
    )
    if any(one.apart is not None for each in claims for one in each):
        text += (
            " 'Seed ... apart': the spread of the other seeds does not explain its difference (Grubbs' test at"
            f" {percent(APART)}), so that bounds which suppose normal differences say little."
        )
    return text


def difference(judgement: Judgement) -> str:
    """Return by how many points the arm is above its baseline, with bounds."""
    return _bounds(judgement.difference, "+.1f")


def _sides(found: Collected, claim: Statement, group: Group) -> tuple[Result | None, Result | None]:
    """Return the results of the claim's arm and of its baseline, None where the grid does not plan one there."""
    arms = {arm_name(arm): arm for arm in found.grid.arms}
    return (
        found.find(group, arms[claim.arm], claim.budget),
        found.find(group, arms[claim.baseline], claim.baseline_budget),
    )


def _verdict(one: Judgement) -> Entry:
    decided = one.verdict in (VERDICTS["yes"], VERDICTS["no"])
    cost = "not known" if one.ratio is None else _bounds(one.ratio, ".1f", "%", exact=one.currency.exact)
    note = f"({cost})" if one.alone == one.verdict else f"({cost}; alone: {one.alone})"
    return Entry(one.verdict, note, decided, value=one.ratio and one.ratio[0]) if one.n else Entry(NONE)


def _bounds(values: Bounds | None, form: str, unit: str = "", exact: bool = False) -> str:
    if values is None:
        return NONE
    mean, low, high = (f"{100 * value:{form}}{unit}" for value in values)
    return mean if exact else f"{mean}; {low} to {high}" if unit else f"{mean} ({low} to {high})"


def _share(value: float) -> str:
    return f"{100 * value:.2g}%"


def _targets_share(costs: Costs, currency: Currency, one: Finished, other: Finished) -> float | None:
    """Return what making the targets of one cell cost, as a share of the other's training."""
    made, baseline = costs.part(one, currency, TARGETS), costs.of(other, currency, ALONE)
    return made / baseline if made is not None and baseline else None


def _price(ratios: list[float], currency: Currency, claim: Statement) -> Bounds | None:
    """Return the cost as a share of the baseline's with its bounds: the geometric mean over the pairs."""
    if len(ratios) < 2:
        return None
    if currency.exact:
        mean = math.exp(statistics.fmean(ratios))
        return mean, mean, mean
    found = interval(ratios, claim.confidence)
    return (math.exp(found.mean), math.exp(found.low), math.exp(found.high)) if found else None
