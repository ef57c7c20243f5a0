"""What reaching an accuracy costs: the saving at each target, and the smallest budget that suffices."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bench.core.stats import interval, run_of
from bench.grid.schema import CONFIDENCE, MARGIN, Arm, arm_name
from bench.report.collect import Collected, Group, Result, may_be_baseline, pairs
from bench.report.costs import ALONE, FLOP, SECONDS, STEPS, TARGETS, Currency, Ledgers
from bench.report.facts import linear
from bench.report.labels import percent
from bench.report.tables import NONE, Entry, Table

RESAMPLES = 4000  # of the seeds; fewer where there are so many seeds that DRAWN of them would be exceeded
DRAWN = 200_000
TARGETS_SHOWN, OF_A_TABLE = 25, slice(None, None, 6)  # five of them
WAYS: tuple[tuple[Currency, Ledgers], ...] = ((STEPS, ALONE), (FLOP, TARGETS), (SECONDS, TARGETS))
NOT_COMPARABLE = "not comparable"
# What a share saved is, by whether the arm, and the baseline, had reached the target before its first evaluation.
BOUNDS = {(False, False): "", (True, False): "at least", (False, True): "at most", (True, True): NOT_COMPARABLE}
REACHED_BY_CHANCE = "7 %"  # of arms half a point below a target, if evaluations scatter by half a point, with 3 seeds


@dataclass(frozen=True)
class Spending:
    """All evaluations of an arm, at all of its budgets: float64 (seeds, evaluations).

    `held` is the accuracy that a seed reached and kept: the lowest of an evaluation, the later ones of its run, and the
    ends of the arm's runs at larger budgets. `first`: the evaluation is the first of its run, which may have had that
    accuracy before. The seeds rise. Where a seed has fewer evaluations than another, all are nan. A seed of which a
    cost is not known is left out: without it, the seed would seem to get there later.
    """

    seeds: tuple[int, ...]
    held: np.ndarray
    cost: np.ndarray
    first: np.ndarray

    def to_reach(self, target: float, seeds: Sequence[int]) -> np.ndarray:
        """Return the cost at which each of the seeds had reached the target, between two bounds: float64 (2, seeds).

        Both are the least cost of an evaluation that held it, infinite without any; the lower one is 0 where a run had
        reached the target before its first evaluation.
        """
        rows = np.searchsorted(self.seeds, seeds)
        there = self.held[rows] >= target
        least = np.where(there, self.cost[rows], np.inf).min(axis=1, initial=np.inf)
        return np.array([np.where((there & (self.first[rows] == 1)).any(axis=1), 0.0, least), least])


@dataclass(frozen=True)
class Saving:
    """What an arm saves of a baseline's cost until it reaches a target accuracy.

    Medians over n seeds, infinite where half of the seeds do not get there. `share` is 1 - arm / baseline: 0.5 is half
    the cost, below 0 a loss, -inf where only the arm does not get there, inf where only the baseline does not, nan for
    both. `bound` says that the share is only a bound, since one of the two was there before its first evaluation, or
    that nothing is known, since both were. `low` and `high` bound the share in 95 % of the bootstrap's resamples of the
    seeds in which one of the two gets there; None with one seed, or if any seed was there before its first evaluation.
    """

    target: float
    n: int
    arm: float
    baseline: float
    share: float
    bound: str
    low: float | None
    high: float | None

    @property
    def exact(self) -> bool:
        """Whether the share is a number, and not a bound."""
        return math.isfinite(self.share) and not self.bound


def spending(found: Collected, group: Group, arm: Arm | None, currency: Currency, ledger: Ledgers) -> Spending:
    """Return what an arm's evaluations reached and had cost."""
    points: dict[int, list[tuple[float, float, bool]]] = {}
    ends: dict[int, float] = {}  # the lowest of the larger budgets, by seed
    unknown = set()
    for result in reversed(found.done_of(group, arm) if arm else []):
        for record in result.done:
            seed, curve = record.cell.seed, [point for point in record.curve if point.score.linear]
            accuracy = np.array([statistics.fmean(point.score.linear) for point in curve])
            reached = held(accuracy, ends.get(seed, math.inf))
            ends[seed] = float(reached[-1])
            for index, point in enumerate(curve):
                cost = found.costs.of(record, currency, ledger, point)
                if cost is None:
                    unknown.add(seed)
                else:
                    points.setdefault(seed, []).append((float(reached[index]), cost, index == 0))
    seeds = tuple(sorted(points.keys() - unknown))
    table = np.full((3, len(seeds), max((len(points[seed]) for seed in seeds), default=0)), np.nan)
    for row, seed in enumerate(seeds):
        table[:, row, : len(points[seed])] = np.array(points[seed]).T
    return Spending(seeds, *table)


def held(accuracy: np.ndarray, ends: float = math.inf) -> np.ndarray:
    """Return the lowest of each accuracy, those after it on the last axis, and `ends`."""
    return np.minimum(np.minimum.accumulate(accuracy[..., ::-1], axis=-1)[..., ::-1], ends)


def saving(ours: Spending, theirs: Spending, target: float) -> Saving | None:
    """Return what an arm saves at a target, over the seeds that it and the baseline both have; None without any."""
    seeds = sorted({*ours.seeds} & {*theirs.seeds})
    if not seeds:
        return None
    spent = np.array([side.to_reach(target, seeds) for side in (ours, theirs)])
    (least, arm), (least_baseline, baseline) = np.median(spent, axis=2).tolist()
    share = _share(arm, baseline)
    bound = BOUNDS[least < arm, least_baseline < baseline] if math.isfinite(share) else ""
    low = high = None
    if len(seeds) > 1 and (spent[:, 0] == spent[:, 1]).all():
        resampled = (_share(*pair) for pair in np.median(spent[:, 1][:, _drawn(len(seeds))], axis=2).T.tolist())
        shares = sorted(each for each in resampled if not math.isnan(each))
        if shares:
            low, high = (shares[round(q * (len(shares) - 1))] for q in (0.025, 0.975))
    return Saving(target, len(seeds), arm, baseline, share, bound, low, high)


@lru_cache(maxsize=8)
def _drawn(count: int) -> np.ndarray:
    """Return the bootstrap's resamples of so many seeds, int64 (resamples, count)."""
    return np.random.default_rng(0).integers(0, count, (min(RESAMPLES, DRAWN // count + 1), count))


def targets(found: Collected, group: Group, plain: Arm | None, count: int) -> list[float]:
    """Return `count` targets from the lowest accuracy that the plain method showed to its median at full budget.

    Of an even number of seeds, the lower of the two in the middle: more than half of them reach it.
    """
    full = found.find(group, plain, 1.0)
    if not (full and full.done and may_be_baseline(full)):
        return []
    top = statistics.median_low(map(linear, full.done))
    bottom = np.nanmin(spending(found, group, plain, STEPS, ALONE).held)
    targets: list[float] = np.linspace(bottom, top, count).tolist()
    return targets


@lru_cache(maxsize=32)
def savings(
    found: Collected, group: Group, currency: Currency, ledger: Ledgers
) -> tuple[tuple[Arm, tuple[Saving, ...]], ...]:
    """Return what each arm with a plain method beside it saves at each target, for the arms with any result."""
    rows = []
    for family in found.families:
        wanted = targets(found, group, family.plain, TARGETS_SHOWN)
        theirs = spending(found, group, family.plain, currency, ledger)
        for arm in family.others:
            ours = spending(found, group, arm, currency, ledger)
            there = tuple(one for target in wanted if (one := saving(ours, theirs, target)))
            rows += [(arm, there)] if there else []
    return tuple(rows)


def has_savings(found: Collected) -> bool:
    """Return whether it is known what any arm saves at any target."""
    lines = [line for group in found.groups_done for _, line in savings(found, group, *WAYS[0])]
    return any(one.exact for line in lines for one in line)


def saving_table(found: Collected) -> Table:
    """Return what each arm saves at some targets, the last of them the plain method's median at full budget."""
    names = ("Dataset", "Arm", "Target accuracy")
    head = (*names, *(f"{currency.value}, {ledger}" for currency, ledger in WAYS), "n")
    rows = []
    for group in found.groups_done:
        lines = [{arm_name(arm): line for arm, line in savings(found, group, *way)} for way in WAYS[1:]]
        for arm, first in savings(found, group, *WAYS[0]):
            unknown = (None,) * len(first)
            others = [line.get(arm_name(arm), unknown)[OF_A_TABLE] for line in lines]
            for one, *ways in zip(first[OF_A_TABLE], *others, strict=True):
                what = (found.label(arm), f"{100 * one.target:.1f}%")
                # Over the same seeds or not at all.
                entries = (_entry(way) if way and way.n == one.n else Entry(NONE) for way in (one, *ways))
                rows.append((Entry(group.label), *map(Entry, what), *entries, Entry(str(one.n))))
    return Table(head, tuple(rows), names=2)


def smallest_table(found: Collected) -> Table:
    """Return the smallest budget at which each arm is no worse than the plain method at full budget, and its cost.

    A budget suffices when the lower bound of the paired difference is above -margin there and at all larger budgets,
    and is ruled out when the upper bound is below it there and at all smaller ones; the true smallest one lies between.
    """
    head = ("Dataset", "Arm", "Suffices", "Ruled out", *(f"{c.value}, {ledger}" for c, ledger in WAYS), "n")
    rows = []
    for group in found.groups_done:
        for family in found.families:
            full = found.find(group, family.plain, 1.0)
            arms = [arm for arm in (family.plain, *family.others) if arm]
            for arm in arms if may_be_baseline(full) else ():
                results = [r for r in found.done_of(group, arm) if pairs(r, full) and r is not full]
                if results:
                    rows.append(_smallest(found, results, full))
    return Table(head, tuple(rows), names=2)


def _smallest(found: Collected, results: list[Result], full: Result | None) -> tuple[Entry, ...]:
    bounds = (interval([linear(one) - linear(other) for one, other in pairs(r, full)], CONFIDENCE) for r in results)
    answers = [each.above(-MARGIN) if each else "undecided" for each in bounds]
    sufficient, insufficient = run_of(reversed(answers), "yes"), run_of(answers, "no")
    enough = results[-sufficient] if sufficient else None
    ruled_out = results[insufficient - 1].budget if insufficient else None
    entries = []
    for currency, ledger in WAYS:
        ratios = found.costs.log_ratios(pairs(enough, full), currency, ledger)
        known = [ratio for ratio in ratios if ratio is not None]
        entries.append(Entry(_percentage(known if len(known) == len(ratios) else [], currency)))
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
    if one.exact and one.low is not None and one.high is not None:
        return Entry(saved(one.share), f"({saved(one.low)} to {saved(one.high)})")
    if one.bound == NOT_COMPARABLE:
        return Entry(one.bound, value=math.nan)
    return Entry(f"{one.bound} {saved(one.share)}".strip(), value=100 * one.share)


def saved(share: float) -> str:
    """Return a share saved for people."""
    if math.isnan(share):
        return "neither gets there"
    return f"{100 * share:.0f}%" if math.isfinite(share) else "only the arm" if share > 0 else "not reached"
