"""What each arm saves of the plain method's cost, against the accuracy that is to be reached."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.grid.cell import Arm
from bench.report.collect import Collected
from bench.report.figures.chart import Chart, Mark, Series
from bench.report.tables import one_line, saved

if TYPE_CHECKING:
    from bench.report.sections.savings import Saving


def saving_chart(found: Collected, title: str, what: str, lines: "Iterable[tuple[Arm, tuple[Saving, ...]]]") -> Chart:
    """Return the savings of arms at each target; what is only a bound, or where an arm does not get there, is not."""
    series = []
    for arm, line in lines:
        name = one_line(found.label(arm), 60)
        marks = tuple(_mark(name, one) for one in line if one.exact)
        if marks:
            style = found.grid.arms.index(arm)
            series.append(Series(name, style, marks, kind="curve", filled=bool(arm.wrappers)))
    if series:
        series.append(Series("nothing saved", 0, (), kind="reference", level=0.0))
    return Chart(one_line(title, 60), "Target: linear accuracy, % of test images", f"{what}, %", tuple(series))


def _mark(name: str, one: "Saving") -> Mark:
    known = one.low is not None and one.high is not None
    bounds = f" ({saved(one.low)} to {saved(one.high)})" if one.low is not None and one.high is not None else ""
    text = f"{name} at {100 * one.target:.1f} % accuracy: saves {saved(one.share)}{bounds} (n={one.n})"
    low, high = (100 * value if value is not None and math.isfinite(value) else None for value in (one.low, one.high))
    return Mark(100 * one.target, 100 * one.share, text, low if known else None, high if known else None)
