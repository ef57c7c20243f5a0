"""Accuracy against cost, in every currency and under every ledger."""

import statistics
from collections.abc import Sequence
from functools import lru_cache

from bench.grid.cell import Arm
from bench.report.collect import Collected, Group, Result
from bench.report.costs import FLOP, LEDGERS, SECONDS, STEPS, Currency, Ledgers
from bench.report.facts import linear, probe_sd
from bench.report.figures.chart import Chart, Mark, Series, View
from bench.report.labels import percent
from bench.report.sections.references import references
from bench.report.tables import UNLEARNED, number, one_line, plus_minus, whole

ACCURACY = "Linear accuracy, % of test images"
MOST = 20  # seeds of a cell that a point names, and that are drawn beside their mean
FLOPS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1.0, "FLOP"))
SCALES = {FLOP: FLOPS, SECONDS: ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))}


def cost_views(found: Collected) -> tuple[View, ...]:
    """Return accuracy against cost in every currency, and every ledger that is known and makes a difference.

    A chart for each dataset on which a cell is done.
    """
    views = []
    for currency in found.costs.currencies:
        before: dict[str, float] = {}
        for ledger in LEDGERS:
            spent = _spent(found, currency, ledger)
            if spent != before and len(spent) == len(found.done):
                views.append(cost_view(found, currency, ledger))
            before = spent
    return tuple(views)


@lru_cache(maxsize=32)
def cost_view(found: Collected, currency: Currency, ledger: Ledgers) -> View:
    """Return accuracy against cost counted in one way, which every finished cell knows."""
    spent = _spent(found, currency, ledger)
    charts = tuple(_chart(found, group, currency, ledger, spent) for group in found.groups_done)
    return View(f"{currency.value}, {ledger}", charts)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (cost, accuracy) points than which none is both cheaper and better, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def named(*results: Result) -> str:
    """Return what to call the arm of some results: marked where one of them learned nothing."""
    bad = any(result.learned is False for result in results)
    return one_line(results[0].label + (f" {UNLEARNED}" if bad else ""), 60)


@lru_cache(maxsize=32)
def _spent(found: Collected, currency: Currency, ledger: Ledgers) -> dict[str, float]:
    """Return what each cell cost, by its id, where that is known."""
    costs = ((record.id, found.costs.of(record, currency, ledger)) for record in found.done)
    return {cell: cost for cell, cost in costs if cost is not None}


def _chart(found: Collected, group: Group, currency: Currency, ledger: Ledgers, spent: dict[str, float]) -> Chart:
    there = found.finished(group)
    most = max(spent[record.id] for result in there for record in result.done)
    scales = SCALES.get(currency, ((1.0, currency.in_words),))
    scale, unit = next(((s, u) for s, u in scales if most >= s), scales[-1])
    budgets: dict[float, str] = {}
    series = []
    for style, arm in enumerate(found.grid.arms):
        mine = found.done_of(group, arm)
        costs = [[spent[record.id] / scale for record in result.done] for result in mine]
        budgets |= {statistics.fmean(each): percent(result.budget) for result, each in zip(mine, costs, strict=True)}
        if mine:
            series.append(_series(arm, style, mine, costs, unit, scale))
    means = [mark for one in series for mark in one.marks if not mark.small]
    best = front([(mark.x, mark.y) for mark in means])
    if len(best) > 1:
        steps = tuple(Mark(x, y, "") for x, y in best)
        series.insert(0, Series("the best at that cost or less", -1, steps, kind="front"))
    for reference in references(found, group):
        series.append(Series(one_line(reference.name, 60), 0, (), kind="reference", level=100 * reference.linear.mean))
    low, high = (of([mark.x for mark in means]) for of in (min, max))
    return Chart(
        one_line(group.label, 60),
        f"{unit}, {ledger}",
        ACCURACY,
        tuple(series),
        log=0 < 4 * low < high,
        budgets=tuple(budgets.items()) if currency is STEPS else (),
    )


def _series(
    arm: Arm, style: int, results: Sequence[Result], costs: Sequence[list[float]], unit: str, scale: float
) -> Series:
    """Return the points of an arm; the line of a plain one at full budget goes across the chart."""
    marks = [_marks(result, spent, unit, scale) for result, spent in zip(results, costs, strict=True)]
    level = marks[-1][0].y if results[-1].budget == 1.0 and not arm.wrappers else None
    points = tuple(mark for those in marks for mark in those)
    return Series(named(*results), style, points, filled=bool(arm.wrappers), level=level)


def _marks(result: Result, spent: Sequence[float], unit: str, scale: float) -> list[Mark]:
    """Return the mean of a result, and its seeds where there are some, but not too many to be told apart."""
    accuracy = result.over_seeds(lambda record: 100 * linear(record))
    assert accuracy
    few = len(result.done) <= MOST
    form = number if scale > 1 or unit in {"FLOP", "seconds"} else whole
    cells = "".join(f"\nseed {record.cell.seed}: cell {record.id}" for record in result.done if few)
    name = f"{named(result)} at {percent(result.budget)}"
    mean = statistics.fmean(spent)
    text = f"{name}: {plus_minus(accuracy, '.1f')} % (n={accuracy.n})\n{form(mean)} {unit}{cells}"
    marks = [Mark(mean, accuracy.mean, text, *accuracy.bounds)]
    if few and len(result.done) > 1:
        for record, cost in zip(result.done, spent, strict=True):
            sd = probe_sd(record.final)
            value = f"{100 * linear(record):.1f}"
            value += " %" if sd is None else f" ± {100 * sd:.1f} % (± over the probe's epochs)"
            text = f"{name}, seed {record.cell.seed}: {value}"
            marks.append(Mark(cost, 100 * linear(record), f"{text}\n{form(cost)} {unit}\ncell {record.id}", small=True))
    return marks
