"""Claims judged: an arm at a share of a baseline's cost is no worse than it, in every way of counting the cost."""

import math
import statistics
from dataclasses import dataclass, replace

from bench.claims import Statement, statements
from bench.report.collect import Collected, Group, Result, may_be_baseline, pairs
from bench.report.costs import ALONE, FLOP, JOULES, LEDGERS, PRIOR, SECONDS, TARGETS, Costs, Currency, Ledgers
from bench.report.facts import linear
from bench.report.labels import percent
from bench.report.tables import NONE, Entry, Table, number
from bench.spec import arm_name
from bench.stats import Answer, interval, seeds_to_decide
from bench.store import Record

VERDICTS: dict[Answer, str] = {"yes": "reproduced", "no": "not reproduced", "undecided": "inconclusive"}
NO_BASELINE = "inconclusive: the baseline did not learn"
Bounds = tuple[float, float, float]  # mean, lower and upper one-sided bound


@dataclass(frozen=True)
class Judgement:
    """What became of a claim on a group's data, under one way of counting the cost.

    `difference` is arm minus baseline in accuracy as a share of the images, of n pairs; `ratio` the arm's cost as a
    share of the baseline's, None where one of the two is not known. `seeds`: pairs in all that would decide; None where
    it is decided, a thousand would not, or it is no question of seeds.
    """

    claim: Statement
    group: Group
    currency: Currency
    ledger: Ledgers
    n: int
    difference: Bounds | None
    ratio: Bounds | None
    verdict: str
    seeds: int | None


def judge(found: Collected, claim: Statement, group: Group) -> list[Judgement]:
    """Return the claim's judgements on a group's data, by ledger and currency; inconclusive below two pairs of seeds.

    Currencies that no record knows are left out, and so are the ledgers of a claim that says nothing about cost.
    """
    arm, baseline = _sides(found, claim, group)
    paired = pairs(arm, baseline)
    differences = [linear(one) - linear(other) for one, other in paired]
    judgements = [
        _judgement(claim, group, currency, ledger, differences, found.costs.log_ratios(paired, currency, ledger))
        for ledger in (LEDGERS if claim.share is not None else (ALONE,))
        for currency in found.costs.currencies
    ]
    if may_be_baseline(baseline):
        return judgements
    return [replace(one, verdict=NO_BASELINE, seeds=None) for one in judgements]


def _judgement(
    claim: Statement,
    group: Group,
    currency: Currency,
    ledger: Ledgers,
    differences: list[float],
    ratios: list[float | None],
) -> Judgement:
    known = [ratio for ratio in ratios if ratio is not None]
    accuracy = interval(differences, claim.confidence)
    price = _price(known, currency, claim) if len(known) == len(ratios) else None
    good: Answer = accuracy.above(-claim.margin) if accuracy else "undecided"
    cheap: Answer = "yes"
    if claim.share is not None:
        cheap = "undecided" if price is None else _at_most(price, claim.share)
    answer: Answer = "no" if "no" in (good, cheap) else "yes" if good == cheap == "yes" else "undecided"
    needed = []
    if accuracy and good == "undecided":
        needed.append(seeds_to_decide(differences, -claim.margin, claim.confidence))
    if cheap == "undecided" and claim.share is not None:
        needed.append(seeds_to_decide(known, math.log(claim.share), claim.confidence) if price else None)
    decide = [seeds for seeds in needed if seeds is not None]
    return Judgement(
        claim=claim,
        group=group,
        currency=currency,
        ledger=ledger,
        n=len(differences),
        difference=(accuracy.mean, accuracy.low, accuracy.high) if accuracy else None,
        ratio=price,
        verdict=VERDICTS[answer],
        seeds=max(decide) if answer == "undecided" and needed and len(decide) == len(needed) else None,
    )


def judged(found: Collected) -> list[list[Judgement]]:
    """Return the judgements of all claims of the grid, a list for each claim and group in which its arms run."""
    return [
        judge(found, claim, group)
        for claim in statements(found.grid)
        for group in found.groups
        if all(_sides(found, claim, group)) and (claim.datasets is None or group.dataset in claim.datasets)
    ]


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
                    Entry(difference(first)),
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
    return Entry(one.verdict, f"({cost})", decided, value=one.ratio and one.ratio[0]) if one.n else Entry(NONE)


def _bounds(values: Bounds | None, form: str, unit: str = "", exact: bool = False) -> str:
    if values is None:
        return NONE
    mean, low, high = (f"{100 * value:{form}}{unit}" for value in values)
    return mean if exact else f"{mean}; {low} to {high}" if unit else f"{mean} ({low} to {high})"


def _share(value: float) -> str:
    return f"{100 * value:.2g}%"


def _targets_share(costs: Costs, currency: Currency, one: Record, other: Record) -> float | None:
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


def _at_most(price: Bounds, share: float) -> Answer:
    return "yes" if price[2] <= share else "no" if price[1] > share else "undecided"
