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
Seeds = dict[int, list[Record]]  # an arm's records at all budgets, by seed
WAYS: tuple[tuple[Currency, Ledgers], ...] = ((STEPS, ALONE), (FLOP, TARGETS), (SECONDS, TARGETS))


@dataclass(frozen=True)
class Saving:
    """What an arm saves of a baseline's cost until it reaches a target accuracy.

    Medians over n seeds, infinite where half of the seeds do not get there. `share` is 1 - arm / baseline: 0.5 is half
    the cost, below 0 a loss, -inf where only the arm does not get there, inf where only the baseline does not, nan for
    both. `low` and `high` bound it in 95 % of the bootstrap's resamples of the seeds in which one of them gets there;
    None with one seed.
    """

    target: float
    n: int
    arm: float
    baseline: float
    share: float
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


def saving(
    ours: Seeds, theirs: Seeds, target: float, costs: Costs, currency: Currency, ledger: Ledgers
) -> Saving | None:
    """Return what an arm saves at a target, over the seeds that it and the baseline both have; None without any."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    spent = np.array(
        [[cost_to_target(side[seed], target, costs, currency, ledger) for seed in seeds] for side in (ours, theirs)]
    )
    arm, baseline = map(float, np.median(spent, axis=1))
    low = high = None
    if len(seeds) > 1:
        drawn = np.random.default_rng(0).integers(0, len(seeds), (RESAMPLES, len(seeds)))
        resampled = (_share(*pair) for pair in np.median(spent[:, drawn], axis=2).T.tolist())
        shares = sorted(share for share in resampled if not math.isnan(share))
        if shares:
            low, high = (shares[round(q * (len(shares) - 1))] for q in (0.025, 0.975))
    return Saving(target, len(seeds), arm, baseline, _share(arm, baseline), low, high)


def by_seed(found: Collected, group: Group, arm: Arm | None) -> Seeds:
    """Return an arm's finished records at all budgets, by seed."""
    seeds: dict[int, list[Record]] = {}
    for result in found.results:
        if (result.group, result.arm) == (group, arm):
            for record in result.done:
                seeds.setdefault(record.cell.seed, []).append(record)
    return seeds


def targets(found: Collected, group: Group, plain: Arm | None, count: int) -> list[float]:
    """Return `count` targets from the lowest accuracy that the plain method showed to its median at full budget."""
    full = found.find(group, plain, 1.0)
    if not full or not full.done:
        return []
    top = statistics.median(map(linear, full.done))
    bottom = min(
        statistics.fmean(point.score.linear)
        for records in by_seed(found, group, plain).values()
        for record in records
        for point in record.curve
        if point.score.linear
    )
    return [bottom + (top - bottom) * index / (count - 1) for index in range(count)]


def has_savings(found: Collected) -> bool:
    """Return whether any arm can be compared with a plain method that was trained at full budget."""
    return bool(saving_table(found).rows)


def saving_table(found: Collected) -> Table:
    """Return what each arm saves at some targets, the last of them the plain method's median at full budget."""
    names = ("Dataset", "Arm", "Target accuracy")
    head = (*names, *(f"{currency.name}, {ledger}" for currency, ledger in WAYS), "n")
    rows = []
    costs = Costs(found)
    for group in found.groups_done:
        for family in found.families:
            theirs = by_seed(found, group, family.plain)
            for arm in family.others:
                ours = by_seed(found, group, arm)
                for target in targets(found, group, family.plain, TABLE_TARGETS):
                    savings = [saving(ours, theirs, target, costs, *way) for way in WAYS]
                    there = [_entry(one) for one in savings if one]
                    if there:
                        label = next(result.label for result in found.results if result.arm == arm)
                        what = (Entry(group.label), Entry(label), Entry(f"{100 * target:.1f}%"))
                        rows.append((*what, *there, Entry(str(len(ours.keys() & theirs.keys())))))
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


def _share(arm: float, baseline: float) -> float:
    """Return the share saved: -inf where the arm does not get there, inf where only the arm does, nan for neither."""
    if math.isinf(arm) or math.isinf(baseline):
        return math.nan if arm == baseline else math.inf if math.isinf(baseline) else -math.inf
    return 1 - arm / baseline


def _entry(one: Saving) -> Entry:
    if not math.isfinite(one.share):
        return Entry(saved(one.share), value=one.share)
    bounds = "" if one.low is None or one.high is None else f"({saved(one.low)} to {saved(one.high)})"
    return Entry(saved(one.share), bounds)


def saved(share: float) -> str:
    """Return a share saved for people."""
    if math.isnan(share):
        return "neither gets there"
    return f"{100 * share:.0f}%" if math.isfinite(share) else "only the arm" if share > 0 else "not reached"
