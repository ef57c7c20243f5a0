"""What the charts of a report show, as plain data: accuracy against every cost, and accuracy while training."""

import math
import statistics
from collections.abc import Sequence

from bench.grid import arm_name
from bench.report.blocks import Chart, Mark, Series, View
from bench.report.claims import COSTS, Cost
from bench.report.collect import Collected, Group, Result, curve_of, linear, probe_sd, summarise
from bench.report.plots import UNITS
from bench.report.tables import number, one_line, percent, plus_minus, whole

ACCURACY = "Linear accuracy, % of test images"
MOST = 20  # seeds of a cell that a point names, and that are drawn beside their mean
SCALES = {"FLOP": UNITS, "seconds": ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))}


def cost_views(found: Collected) -> tuple[View, ...]:
    """Return accuracy against cost in every currency and ledger, a chart for each dataset on which it was measured."""
    currencies = [cost.currency for cost in COSTS]
    views = []
    for cost in COSTS:
        name = cost.currency if currencies.count(cost.currency) == 1 else f"{cost.currency}, {cost.ledger}"
        charts = (_cost_chart(found, group, cost) for group in found.groups_done)
        views.append(View(name, tuple(chart for chart in charts if chart.series)))
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


def _cost_chart(found: Collected, group: Group, cost: Cost) -> Chart:
    there = [result for result in found.results if result.group == group and result.done]
    spent = [cost.of(record) for result in there for record in result.done]
    most = max((value for value in spent if math.isfinite(value)), default=1.0)
    scales = SCALES.get(cost.currency, ((1.0, cost.currency),))
    scale, unit = next(((s, u) for s, u in scales if most >= s), scales[-1])
    series = []
    for style, arm in enumerate(found.grid.arms):
        mine = found.done_of(group, arm)
        marks = [_marks(result, cost, scale, unit) for result in mine]
        level = marks[-1][0] if mine and mine[-1].budget == 1.0 and marks[-1] and not arm.rela else None
        if any(marks):
            name, points = one_line(mine[0].label, 60), tuple(mark for those in marks for mark in those)
            series.append(Series(name, style, points, filled=arm.rela is not None, level=level))
    means = [mark for one in series for mark in one.marks if not mark.small]
    best = front([(mark.x, mark.y) for mark in means])
    if len(best) > 1:
        steps = tuple(Mark(x, y, "") for x, y in best)
        series.insert(0, Series("the best at that cost or less", -1, steps, kind="front"))
    low, high = (of([mark.x for mark in means], default=0.0) for of in (min, max))
    label = unit if len(scales) == 1 else f"{unit}, {cost.ledger}"
    return Chart(one_line(group.label, 60), label, ACCURACY, tuple(series), log=0 < 4 * low < high)


def _marks(result: Result, cost: Cost, scale: float, unit: str) -> list[Mark]:
    """Return the mean of a result, and its seeds where there are some, but not too many to be told apart."""
    spent = {record.id: cost.of(record) / scale for record in result.done}
    records = [record for record in result.done if math.isfinite(spent[record.id])]
    accuracy = summarise(100 * linear(record) for record in records)
    if not accuracy:
        return []
    form = number if scale > 1 or unit in {"FLOP", "seconds"} else whole
    cells = ""
    if len(records) <= MOST:
        cells = "\n" + "\n".join(f"seed {record.cell.seed}: cell {record.id}" for record in records)
    mean = statistics.fmean(spent[record.id] for record in records)
    name = f"{one_line(result.label, 60)} at {percent(result.budget)}"
    text = f"{name}: {plus_minus(accuracy, '.1f')} % (n={accuracy.n})\n{form(mean)} {unit}{cells}"
    marks = [Mark(mean, accuracy.mean, text, accuracy.sd)]
    if 1 < len(records) <= MOST:
        for record in records:
            sd = probe_sd(record)
            spread = "" if sd is None else f" ± {100 * sd:.1f}"
            text = f"{name}, seed {record.cell.seed}: {100 * linear(record):.1f}{spread} % (± over the probe's epochs)"
            text += f"\n{form(spent[record.id])} {unit}\ncell {record.id}"
            marks.append(Mark(spent[record.id], 100 * linear(record), text, small=True))
    return marks


def _curve_chart(found: Collected, group: Group) -> Chart:
    series = []
    for style, arm in enumerate(found.grid.arms):
        for result in found.done_of(group, arm)[-1:]:
            name = f"{one_line(result.label, 60)} at {percent(result.budget)}"
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
