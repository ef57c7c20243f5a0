"""What the charts of a report show, as plain data: accuracy against every cost, and accuracy while training."""

import statistics
from collections.abc import Sequence

from bench.grid.schema import arm_name
from bench.report.blocks import Chart, Mark, Series, View
from bench.report.collect import Collected, Group, Result, curve_of
from bench.report.costs import FLOP, LEDGERS, SECONDS, Currency, Ledgers
from bench.report.facts import linear, probe_sd
from bench.report.labels import percent
from bench.report.plots import UNITS
from bench.report.references import references
from bench.report.saving import WAYS, Saving, saved, savings
from bench.report.tables import UNLEARNED, number, one_line, plus_minus, whole

ACCURACY = "Linear accuracy, % of test images"
MOST = 20  # seeds of a cell that a point names, and that are drawn beside their mean
SCALES = {FLOP: UNITS, SECONDS: ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))}


def cost_views(found: Collected) -> tuple[View, ...]:
    """Return accuracy against cost in every currency, and every ledger that is known and makes a difference.

    A chart for each dataset on which a cell is done.
    """
    views = []
    for currency in found.costs.currencies:
        before: dict[str, float] = {}
        for ledger in LEDGERS:
            costs = ((record.id, found.costs.of(record, currency, ledger)) for record in found.done)
            spent = {cell: cost for cell, cost in costs if cost is not None}
            if spent != before and len(spent) == len(found.done):
                charts = tuple(_cost_chart(found, group, currency, ledger, spent) for group in found.groups_done)
                views.append(View(f"{currency.value}, {ledger}", charts))
            before = spent
    return tuple(views)


def saving_views(found: Collected) -> tuple[View, ...]:
    """Return what each arm saves at each target accuracy."""
    views = []
    for currency, ledger in WAYS:
        charts = (_saving_chart(found, group, currency, ledger) for group in found.groups_done)
        views.append(View(f"{currency.value}, {ledger}", tuple(chart for chart in charts if chart.series)))
    return tuple(view for view in views if view.charts)


def curve_views(found: Collected) -> tuple[View, ...]:
    """Return each arm's curve at its largest budget, and the published points."""
    charts = (_curve_chart(found, group) for group in found.groups_done)
    return (View("epochs", tuple(chart for chart in charts if chart.series)),)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (cost, accuracy) points than which none is both cheaper and better, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def _cost_chart(found: Collected, group: Group, currency: Currency, ledger: Ledgers, spent: dict[str, float]) -> Chart:
    """Return the chart of a group; `spent` has what each cell cost, by its id."""
    there = [result for result in found.results if result.group == group and result.done]
    most = max(spent[record.id] for result in there for record in result.done)
    scales = SCALES.get(currency, ((1.0, currency.value.lower()),))
    scale, unit = next(((s, u) for s, u in scales if most >= s), scales[-1])
    series = []
    for style, arm in enumerate(found.grid.arms):
        mine = found.done_of(group, arm)
        marks = [_marks(result, [spent[record.id] / scale for record in result.done], unit, scale) for result in mine]
        level = marks[-1][0] if mine and mine[-1].budget == 1.0 and not arm.rela else None
        if mine:
            name, points = one_line(_named(mine), 60), tuple(mark for those in marks for mark in those)
            series.append(Series(name, style, points, filled=arm.rela is not None, level=level))
    series += _references(found, group)
    means = [mark for one in series for mark in one.marks if not mark.small]
    best = front([(mark.x, mark.y) for mark in means])
    if len(best) > 1:
        steps = tuple(Mark(x, y, "") for x, y in best)
        series.insert(0, Series("the best at that cost or less", -1, steps, kind="front"))
    low, high = (of([mark.x for mark in means], default=0.0) for of in (min, max))
    return Chart(one_line(group.label, 60), f"{unit}, {ledger}", ACCURACY, tuple(series), log=0 < 4 * low < high)


def _named(results: Sequence[Result]) -> str:
    """Return what to call the results of an arm: marked where one of them learned nothing."""
    return results[0].label + f" {UNLEARNED}" * any(result.learned is False for result in results)


def _references(found: Collected, group: Group) -> list[Series]:
    there = [(one_line(reference.name, 60), reference.linear) for reference in references(found, group)]
    return [
        Series(name, 0, (), kind="reference", level=Mark(0, 100 * linear.mean, f"{name}: {100 * linear.mean:.1f} %"))
        for name, linear in there
    ]


def _marks(result: Result, spent: Sequence[float], unit: str, scale: float) -> list[Mark]:
    """Return the mean of a result, and its seeds where there are some, but not too many to be told apart."""
    accuracy = result.over_seeds(lambda record: 100 * linear(record))
    assert accuracy
    few = len(result.done) <= MOST
    form = number if scale > 1 or unit in {"FLOP", "seconds"} else whole
    cells = "".join(f"\nseed {record.cell.seed}: cell {record.id}" for record in result.done if few)
    name = f"{one_line(_named([result]), 60)} at {percent(result.budget)}"
    mean = statistics.fmean(spent)
    text = f"{name}: {plus_minus(accuracy, '.1f')} % (n={accuracy.n})\n{form(mean)} {unit}{cells}"
    marks = [Mark(mean, accuracy.mean, text, accuracy.sd)]
    if few and len(result.done) > 1:
        for record, cost in zip(result.done, spent, strict=True):
            sd = probe_sd(record.final)
            value = f"{100 * linear(record):.1f}"
            value += " %" if sd is None else f" ± {100 * sd:.1f} % (± over the probe's epochs)"
            text = f"{name}, seed {record.cell.seed}: {value}"
            marks.append(Mark(cost, 100 * linear(record), f"{text}\n{form(cost)} {unit}\ncell {record.id}", small=True))
    return marks


def _saving_chart(found: Collected, group: Group, currency: Currency, ledger: Ledgers) -> Chart:
    series = []
    for arm, line in savings(found, group, currency, ledger):
        there = [one for one in line if one.exact]
        if there:
            name = one_line(found.label(arm), 60)
            marks = tuple(Mark(100 * one.target, 100 * one.share, _saved(name, one)) for one in there)
            style = found.grid.arms.index(arm)
            series.append(Series(name, style, marks, kind="curve", filled=arm.rela is not None))
    return Chart(
        one_line(group.label, 60),
        "target: linear accuracy, % of test images",
        f"{currency.value} saved, %",
        tuple(series),
        from_zero=False,
    )


def _saved(name: str, one: Saving) -> str:
    bounds = "" if one.low is None or one.high is None else f" ({saved(one.low)} to {saved(one.high)})"
    return f"{name} at {100 * one.target:.1f} % accuracy: saves {saved(one.share)}{bounds} (n={one.n})"


def _curve_chart(found: Collected, group: Group) -> Chart:
    series = []
    for style, arm in enumerate(found.grid.arms):
        for result in found.done_of(group, arm)[-1:]:
            name = f"{one_line(_named([result]), 60)} at {percent(result.budget)}"
            cells = "\n".join(f"seed {one.cell.seed}: cell {one.id}" for one in result.done[:MOST])
            marks = [
                Mark(epoch, s.mean, f"{name} after {epoch:g} epochs: {plus_minus(s, '.1f')} % (n={s.n})\n{cells}", s.sd)
                for epoch, s in curve_of(result).items()
            ]
            series.append(Series(name, style, tuple(marks), kind="curve", filled=arm.rela is not None))
        published = [point for point in found.grid.published if point.arm == arm_name(arm)]
        if published:
            name = f"{one_line(arm_name(arm), 60)}: published"
            marks = [
                Mark(
                    p.epoch,
                    100 * p.linear,
                    f"{name}, {100 * p.linear:.0f} % after {p.epoch} epochs\n{one_line(p.source)}",
                )
                for p in published
            ]
            series.append(Series(name, style, tuple(marks), kind="published", filled=False))
    return Chart(
        one_line(group.label, 60), "epochs, each over the budget's share of the images", ACCURACY, tuple(series)
    )
