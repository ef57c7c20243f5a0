"""Accuracy while the cells trained, beside what the paper reports."""

from bench.grid.cell import Arm, arm_name
from bench.grid.published import FIGURE_DATASET, READ_OFF, figure_curves
from bench.report.collect import Collected, Group, Result
from bench.report.curves import curve_of
from bench.report.figures.chart import Chart, Mark, Series, View
from bench.report.figures.costs import ACCURACY, MOST, named
from bench.report.labels import percent
from bench.report.tables import one_line, plus_minus


def curve_views(found: Collected) -> tuple[View, ...]:
    """Return each arm's curve at its largest budget, and the published points."""
    charts = (_chart(found, group) for group in found.groups_done)
    return (View("epochs", tuple(chart for chart in charts if chart.series)),)


def _chart(found: Collected, group: Group) -> Chart:
    series = []
    for style, arm in enumerate(found.grid.arms):
        series += [_curve(result, style) for result in found.done_of(group, arm)[-1:]]
        series += _published(found, arm, style)
        series += _read_off(found, group, arm, style)
    label = "Epochs, each over the budget's share of the images"
    return Chart(one_line(group.label, 60), label, ACCURACY, tuple(series))


def _curve(result: Result, style: int) -> Series:
    name = f"{named(result)} at {percent(result.budget)}"
    cells = "\n".join(f"seed {one.cell.seed}: cell {one.id}" for one in result.done[:MOST])
    marks = [
        Mark(
            epoch,
            summary.mean,
            f"{name} after {epoch:g} epochs: {plus_minus(summary, '.1f')} % (n={summary.n})\n{cells}",
            *summary.bounds,
        )
        for epoch, summary in curve_of(result).items()
    ]
    return Series(name, style, tuple(marks), kind="curve", filled=bool(result.arm.wrappers))


def _published(found: Collected, arm: Arm, style: int) -> list[Series]:
    """Return the points that the paper reports of an arm, if there are any."""
    name = f"{one_line(arm_name(arm), 60)}: published"
    marks = [
        Mark(
            point.epoch,
            100 * point.linear,
            f"{name}, {100 * point.linear:.0f} % after {point.epoch} epochs\n{one_line(point.source)}",
        )
        for point in found.grid.published
        if point.arm == arm_name(arm)
    ]
    return [Series(name, style, tuple(marks), kind="published", filled=False)] if marks else []


def _read_off(found: Collected, group: Group, arm: Arm, style: int) -> list[Series]:
    """Return the curve of the paper's figure that the grid sets beside an arm, on the figure's dataset."""
    curve = found.grid.figure.get(arm_name(arm))
    if curve is None or group.dataset != FIGURE_DATASET:
        return []
    name = f"{one_line(arm_name(arm), 60)}: published, {READ_OFF}"
    points = figure_curves()[curve]
    marks = (Mark(epoch, 100 * share, f"{name}: {100 * share:.1f} % after {epoch} epochs") for epoch, share in points)
    return [Series(name, style, tuple(marks), kind="read off", filled=False)]
