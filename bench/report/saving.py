"""What reaching an accuracy costs: the saving at each target, and the smallest budget that suffices."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.report.collect import Collected, Group, Result, linear, pairs
from bench.report.costs import ALONE, FLOP, SECONDS, STEPS, TARGETS, Costs, Currency, Ledgers
from bench.report.tables import NONE, Entry, Table, percent
from bench.spec import CONFIDENCE, MARGIN, Arm
from bench.stats import interval
from bench.store import Record

RESAMPLES = 4000
TABLE_TARGETS, CURVE_TARGETS = 5, 40
WAYS: tuple[tuple[Currency, Ledgers], ...] = ((STEPS, ALONE), (FLOP, TARGETS), (SECONDS, TARGETS))


@dataclass(frozen=True)
class Saving:
    """What an arm saves of a baseline's cost until it reaches a target accuracy.

    Medians over n seeds, infinite where half of the seeds do not get there. `share` is 1 - arm / baseline: 0.5 is half
    the cost, below 0 a loss, -inf where the arm does not get there, None where the baseline does not. `low` and `high`
    bound it in 95 % of the bootstrap's resamples of the seeds.
    """

    target: float
    n: int
    arm: float
    baseline: float
    share: float | None
    low: float | None
    high: float | None


def cost_to_target(
    records: Sequence[Record], target: float, costs: Costs, currency: Currency, ledger: Ledgers
) -> float:
    """Return the least that any evaluation of these records (an arm and seed) had cost that reached the target.

    Infinite when none did, or when its cost is not known.
    """
    spent = [
        costs.of(record, currency, ledger, point)
        for record in records
        for point in record.curve
        if point.score.linear and statistics.fmean(point.score.linear) >= target
    ]
    return min((cost for cost in spent if cost is not None), default=math.inf)


def star(found: Collected, group: Group, plain: Arm | None) -> float | None:
    """Return the target: the plain method's median accuracy over seeds at the full budget."""
    result = found.find(group, plain, 1.0)
    return statistics.median(map(linear, result.done)) if result and result.done else None


def saving(
    found: Collected, group: Group, arm: Arm, baseline: Arm, target: float, currency: Currency, ledger: Ledgers
) -> Saving | None:
    """Return what an arm saves at a target, over the seeds that both have; None without any."""
    ours, theirs = (_by_seed(found, group, side) for side in (arm, baseline))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    costs = Costs(found)
    spent = np.array(
        [[cost_to_target(side[seed], target, costs, currency, ledger) for seed in seeds] for side in (ours, theirs)]
    )
    medians = np.median(spent, axis=1)
    low = high = None
    if len(seeds) > 1:
        drawn = np.random.default_rng(0).integers(0, len(seeds), (RESAMPLES, len(seeds)))
        shares = np.sort([_share(*pair) for pair in np.median(spent[:, drawn], axis=2).T])
        low, high = (float(shares[round(q * (RESAMPLES - 1))]) for q in (0.025, 0.975))
    share = _share(*medians) if math.isfinite(medians[1]) else None
    return Saving(target, len(seeds), float(medians[0]), float(medians[1]), share, low, high)


def targets(found: Collected, group: Group, plain: Arm, count: int) -> list[float]:
    """Return `count` targets from the lowest accuracy that the plain method showed to its median at full budget."""
    top = star(found, group, plain)
    seen = [
        statistics.fmean(point.score.linear)
        for records in _by_seed(found, group, plain).values()
        for record in records
        for point in record.curve
        if point.score.linear
    ]
    if top is None or not seen:
        return []
    bottom = min(seen)
    return [bottom + (top - bottom) * index / (count - 1) for index in range(count)]


def saving_table(found: Collected) -> Table:
    """Return what each arm saves at some targets, the last of them the plain method's median at full budget."""
    names = ("Dataset", "Arm", "Target accuracy")
    head = (*names, *(f"{currency.name}, {ledger}" for currency, ledger in WAYS), "n")
    rows = []
    for group in found.groups_done:
        for family in found.families:
            if family.plain is None:
                continue
            for arm in family.others:
                for target in targets(found, group, family.plain, TABLE_TARGETS):
                    savings = [saving(found, group, arm, family.plain, target, *way) for way in WAYS]
                    there = [one for one in savings if one]
                    if len(there) == len(WAYS):
                        label = next(r.label for r in found.results if r.arm == arm)
                        names_ = (Entry(group.label), Entry(label), Entry(f"{100 * target:.1f}%"))
                        rows.append((*names_, *map(_saving, there), Entry(str(there[0].n))))
    return Table(head, tuple(rows), names=2)


def smallest_table(found: Collected) -> Table:
    """Return the smallest budget at which each arm is no worse than the plain method at full budget, and its cost.

    A budget suffices when the lower bound of the paired difference is above -margin, and is ruled out when the upper
    bound is below it; the true smallest one lies between the two.
    """
    head = ("Dataset", "Arm", "Suffices", "Ruled out", *(f"{c.name}, {ledger}" for c, ledger in WAYS), "n")
    rows = []
    for group in found.groups_done:
        for family in found.families:
            full = found.find(group, family.plain, 1.0)
            arms = [arm for arm in (family.plain, *family.others) if arm]
            for arm in arms:
                results = sorted(
                    (r for r in found.results if (r.group, r.arm) == (group, arm) and pairs(r, full) and r is not full),
                    key=lambda result: result.budget,
                )
                if results:
                    rows.append(_smallest(found, results, full))
    return Table(head, tuple(rows), names=2)


def _smallest(found: Collected, results: list[Result], full: Result | None) -> tuple[Entry, ...]:
    judged = []
    for result in results:
        bounds = interval([linear(one) - linear(other) for one, other in pairs(result, full)], CONFIDENCE)
        judged.append((result, bounds.above(-MARGIN) if bounds else "undecided"))
    enough = next((result for result, answer in judged if answer == "yes"), None)
    below = [result.budget for result, answer in judged if answer == "no"]
    ruled_out = max((budget for budget in below if enough is None or budget < enough.budget), default=None)
    costs, entries = Costs(found), []
    for currency, ledger in WAYS:
        shares = []
        for one, other in pairs(enough, full):
            ours, theirs = (costs.of(record, currency, ledger) for record in (one, other))
            if ours is not None and theirs:
                shares.append(math.log(ours / theirs))
        entries.append(Entry(_percentage(shares, currency)))
    first = results[0]
    n = len(pairs(enough or first, full))
    return (
        Entry(first.group.label),
        Entry(first.label),
        Entry(percent(enough.budget) if enough else "none tried", bold=enough is not None),
        Entry(f"up to {percent(ruled_out)}" if ruled_out is not None else "none tried"),
        *entries,
        Entry(str(n)),
    )


def _percentage(logs: list[float], currency: Currency) -> str:
    """Return a geometric mean of cost ratios, with its bounds where it has a spread."""
    if not logs:
        return NONE
    mean = f"{100 * math.exp(statistics.fmean(logs)):.1f}%"
    bounds = interval(logs, CONFIDENCE)
    if currency.exact or bounds is None:
        return mean
    return f"{mean} ({100 * math.exp(bounds.low):.1f} to {100 * math.exp(bounds.high):.1f}%)"


def _by_seed(found: Collected, group: Group, arm: Arm) -> dict[int, list[Record]]:
    """Return an arm's finished records at all budgets, by seed."""
    seeds: dict[int, list[Record]] = {}
    for result in found.results:
        if (result.group, result.arm) == (group, arm):
            for record in result.done:
                seeds.setdefault(record.cell.seed, []).append(record)
    return seeds


def _share(arm: float, baseline: float) -> float:
    if math.isinf(arm):
        return -math.inf
    return 1.0 if math.isinf(baseline) else 1 - arm / baseline


def _saving(one: Saving) -> Entry:
    if one.share is None:
        return Entry("only the arm gets there" if math.isfinite(one.arm) else "neither gets there")
    if math.isinf(one.share):
        return Entry("does not get there")
    bounds = f"({_bound(one.low)} to {_bound(one.high)})" if one.low is not None and one.high is not None else ""
    return Entry(f"{100 * one.share:.0f}%", bounds)


def _bound(value: float) -> str:
    return "not reached" if math.isinf(value) else f"{100 * value:.0f}%"
