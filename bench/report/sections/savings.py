"""What reaching an accuracy costs: what each arm saves at each target."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bench.grid.cell import Arm, arm_name
from bench.report.blocks import Block, Figure, Heading, Image, Paragraph, TableBlock
from bench.report.collect import Collected, Group, may_be_baseline
from bench.report.costs import ALONE, FLOP, SECONDS, STEPS, TARGETS, Currency, Ledgers
from bench.report.facts import linear
from bench.report.figures.chart import View
from bench.report.figures.savings import saving_chart
from bench.report.tables import NONE, Entry, Table, entries, saved
from bench.store.record import score_linear

RESAMPLES = 4000  # of the seeds; fewer where there are so many seeds that DRAWN of them would be exceeded
DRAWN = 200_000
TARGETS_SHOWN, OF_A_TABLE = 25, slice(None, None, 6)  # five of them
WAYS: tuple[tuple[Currency, Ledgers], ...] = ((STEPS, ALONE), (FLOP, TARGETS), (SECONDS, TARGETS))
NOT_COMPARABLE = "not comparable"
# What a share saved is, by whether the arm, and the baseline, had reached the target before its first evaluation.
BOUNDS = {(False, False): "", (True, False): "at least", (False, True): "at most", (True, True): NOT_COMPARABLE}
REACHED_BY_CHANCE = "7 %"  # of arms half a point below a target, if evaluations scatter by half a point, with 3 seeds


def section(found: Collected) -> Iterator[Block]:
    """Yield the table and the figure, where the grid has a plain method to compare with."""
    table = saving_table(found)
    if not table.rows:
        return
    yield Heading("What reaching an accuracy costs")
    yield Paragraph(
        "The saving at a target accuracy: 1 minus the arm's cost as a share of the plain method's. A seed's cost is"
        " that of its cheapest evaluation, at any budget, that holds the target: it, the later ones of its run and the"
        " ends of the arm's larger budgets are no lower. One that never does is infinite and stays in the median over n"
        " seeds. An arm of three seeds that stays half a point below a target, with evaluations that scatter by half a"
        f" point, is taken to reach it with a chance of {REACHED_BY_CHANCE}, however many evaluations it has. At least,"
        " at most: a run that holds the target at its first evaluation had reached it at an unknown earlier step; where"
        " both sides had, they are not comparable. In brackets: 95 % of the medians when the seeds are drawn anew"
        " (bootstrap), which few seeds make coarse. The highest target is the plain method's median at full budget. The"
        " figure leaves out what is only a bound."
    )
    yield TableBlock("savings", table)
    if has_savings(found):
        views = {way: saving_view(found, *way) for way in WAYS}
        title = "What is saved at each target accuracy"
        image = Image("FLOP saved at each target", "saving_vs_target", views[FLOP, TARGETS])
        yield Figure("savings-curve", title, (image,), tuple(view for view in views.values() if view.charts))


def saving_view(found: Collected, currency: Currency, ledger: Ledgers) -> View:
    """Return what each arm saves at each target, counted in one way: a chart for each dataset."""
    charts = (
        saving_chart(found, group.label, f"{currency.value} saved, {ledger}", savings(found, group, currency, ledger))
        for group in found.groups_done
    )
    return View(f"{currency.value}, {ledger}", tuple(chart for chart in charts if chart.series))


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
            accuracy = np.array([score_linear(point.score) for point in curve])
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
    share = float(_share(arm, baseline))
    bound = BOUNDS[least < arm, least_baseline < baseline] if math.isfinite(share) else ""
    low = high = None
    if len(seeds) > 1 and (spent[:, 0] == spent[:, 1]).all():
        resampled = _share(*np.median(spent[:, 1][:, _drawn(len(seeds))], axis=2))
        shares = np.sort(resampled[~np.isnan(resampled)])
        if len(shares):
            low, high = (float(shares[round(q * (len(shares) - 1))]) for q in (0.025, 0.975))
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
                # Over the same seeds or not at all.
                shares = (_entry(way) if way and way.n == one.n else NONE for way in (one, *ways))
                rows.append(entries(group.label, found.label(arm), f"{100 * one.target:.1f}%", *shares, str(one.n)))
    return Table(head, tuple(rows), names=2)


def _share(arm: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Return the share saved: -inf where the arm does not get there, inf where only the arm does, nan for neither."""
    with np.errstate(invalid="ignore"):  # of neither
        return np.where(np.isinf(baseline) & np.isfinite(arm), np.inf, 1 - arm / baseline)


def _entry(one: Saving) -> Entry:
    if one.exact and one.low is not None and one.high is not None:
        return Entry(saved(one.share), f"({saved(one.low)} to {saved(one.high)})")
    if one.bound == NOT_COMPARABLE:
        return Entry(one.bound, value=math.nan)
    return Entry(f"{one.bound} {saved(one.share)}".strip(), value=100 * one.share)
