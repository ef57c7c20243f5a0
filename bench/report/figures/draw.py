"""Charts drawn by matplotlib: as files, and as SVG for a page. Equal charts, equal bytes."""

import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from bench.core.errors import describe_error
from bench.report.figures.chart import Chart, Mark, Series, View, legend
from bench.report.figures.svg import COLOURS, GREY, PALE, PAPER, page_svg
from bench.report.tables import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With colour and marker, so that lines can be told apart in grey.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*")
SUFFIXES = ("png", "svg", "pdf")
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.bottom": False,
    "ytick.left": False,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.hashsalt": "rela-bench",
}
BESIDE = 5 / 72  # inches: how far beside their mean the seeds are drawn
LEGEND_LINES, LEGEND_LINE = 6, 0.22  # lines of a legend that a figure has room for, and inches of a further one
MOST_NAMED = 2  # levels, whose names would cover one another
Drawn = TypeVar("Drawn")


class NotDrawn(UserWarning):
    """Names a picture that could not be drawn, and says why."""


def guarded(name: str, draw: Callable[[], Drawn]) -> Drawn | None:
    """Return what is drawn, None and a warning NotDrawn where that fails: a picture never costs a table."""
    try:
        with own_settings(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            return draw()
    except Exception as error:  # of matplotlib, its fonts or its files
        warnings.warn(f"{name} cannot be drawn: {describe_error(error)}", NotDrawn, stacklevel=2)
        return None


def image_files(name: str, view: View, title: str) -> dict[str, bytes]:
    """Return a view as PNG, SVG and PDF by file name."""
    figure = view_figure(view, title)
    return {f"{name}.{suffix}": _bytes(figure, suffix) for suffix in SUFFIXES}


def view_figure(view: View, title: str) -> "Figure":
    """Return a figure with a panel for each chart of a view, and one legend."""
    from matplotlib.figure import Figure

    columns = min(2, len(view.charts))
    rows = math.ceil(len(view.charts) / columns)
    figure = Figure(figsize=(9, 0.9 + 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    handles: dict[str, Any] = {}
    for panel, chart in zip(panels, view.charts, strict=False):
        draw_chart(panel, chart)
        lines, labels = panel.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
        if len(view.charts) > 1:
            panel.set_title(chart.title, loc="left")
    for panel in panels[len(view.charts) :]:
        panel.set_axis_off()
    figure.suptitle(title if len(view.charts) > 1 else f"{title}: {view.charts[0].title}", weight="bold", size=12.5)
    labels = [label for series in legend(view.charts) if (label := _legible(series.name)) in handles]
    _draw_legend(figure, {label: handles[label] for label in labels})
    return figure


def draw_chart(axes: "Axes", chart: Chart) -> dict[str, Sequence[Mark]]:
    """Draw a chart, and return the marks of each line of markers by the id that the line has in an SVG."""
    drawn: dict[str, Sequence[Mark]] = {}
    for index, series in enumerate(chart.series):
        means = [mark for mark in series.marks if not mark.small]
        seeds = [mark for mark in series.marks if mark.small]
        if means:
            _draw_means(axes, series, means).set_gid(f"means-{index}")
        if seeds:
            _draw_seeds(axes, series, seeds, f"seeds-{index}")
        if series.level is not None:
            _draw_level(axes, series)
        drawn |= {f"means-{index}": means} if series.kind != "front" else {}
        drawn |= {f"seeds-{index}": seeds}
    axes.set_ylabel(chart.y_label)
    _draw_x_axis(axes, chart)
    _name_levels(axes, chart)
    return drawn


def _draw_means(axes: "Axes", series: Series, means: Sequence[Mark]) -> Any:
    """Draw the means of a series with what lies between their bounds, and return their line."""
    look, xs, ys = look_of(series), [mark.x for mark in means], [mark.y for mark in means]
    if series.kind == "front":
        return axes.step(xs, ys, where="post", **look)[0]
    lows = [mark.y if mark.low is None else mark.low for mark in means]
    highs = [mark.y if mark.high is None else mark.high for mark in means]
    if series.kind == "cells":
        bars = [
            [math.nan if mark.low is None else abs(mark.y - edge) for mark, edge in zip(means, edges, strict=True)]
            for edges in (lows, highs)
        ]
        return axes.errorbar(xs, ys, yerr=bars, elinewidth=1.1, **look).lines[0]
    if series.kind == "curve":
        axes.fill_between(xs, lows, highs, color=look["color"], alpha=0.13, linewidth=0)
    return axes.plot(xs, ys, **look)[0]


def _draw_seeds(axes: "Axes", series: Series, seeds: Sequence[Mark], name: str) -> None:
    """Draw single seeds a little beside their mean."""
    from matplotlib.transforms import ScaledTranslation

    beside = axes.transData + ScaledTranslation(BESIDE, 0, axes.figure.dpi_scale_trans)
    look = {"color": look_of(series)["color"], "marker": "o", "markersize": 2.8, "markeredgewidth": 0, "linestyle": ""}
    axes.plot([mark.x for mark in seeds], [mark.y for mark in seeds], **look, alpha=0.6, transform=beside, gid=name)


def _draw_level(axes: "Axes", series: Series) -> None:
    dashes, width = ((1, 2), 1.2) if series.kind == "reference" else ((5, 3), 1.0)
    axes.axhline(
        series.level or 0.0, color=look_of(series)["color"], zorder=1.5, linestyle=(0, dashes), linewidth=width
    )


def look_of(series: Series) -> dict[str, Any]:
    """Return how matplotlib draws the line of a series."""
    label = _legible(series.name)
    if series.kind == "front":
        return {"color": PALE, "linewidth": 5, "zorder": 1, "label": label}
    colour = GREY if series.kind == "reference" else COLOURS[series.style % len(COLOURS)]
    curve, published, read_off = (series.kind == kind for kind in ("curve", "published", "read off"))
    return {
        "color": colour,
        "marker": "*" if published else MARKERS[series.style % len(MARKERS)],
        "markersize": 12 if published else 4 if curve else 2.5 if read_off else 6.5,
        "markerfacecolor": colour if series.filled else PAPER,  # so that it can be told in grey, too
        "markeredgewidth": 1.0 if curve else 0.6 if read_off else 1.5,
        "linestyle": "" if published else DASHES[series.style % len(DASHES)],
        "linewidth": 0.6 if read_off else 1.6,
        "label": label,
    }


def _draw_x_axis(axes: "Axes", chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    costs = [mark.x for mark in chart.means]
    if chart.log and costs:
        axes.set_xscale("log")
        decades = math.log10(max(costs) / min(costs))
        subs = (1, 1.5, 2, 3, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 2 else (1, 3) if decades < 4 else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.07)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    label = chart.x_label
    ticks = dict(sorted(chart.budgets))
    if ticks and _apart([*ticks], chart.log):
        axes.set_xticks([*ticks], [f"{cost:,.0f}\n{budget}" for cost, budget in ticks.items()])
        label += ", and budget"
    axes.set_xlabel(f"{label} (log scale)" if chart.log else label)


def _apart(costs: list[float], log: bool) -> bool:
    """Return whether ticks at these costs would stand clear of one another."""
    spots = [math.log(cost) for cost in costs] if log else costs
    gaps = [right - left for left, right in pairwise(spots)]
    return not gaps or min(gaps) >= 0.12 * (spots[-1] - spots[0])


def _name_levels(axes: "Axes", chart: Chart) -> None:
    """Name the lines across the chart at its right edge, moved apart where they are close."""
    levels = [series for series in chart.series if series.level is not None]
    if sum(series.kind == "cells" for series in levels) > MOST_NAMED:
        levels = [series for series in levels if series.kind == "reference"]
    low, high = axes.get_ylim()
    place = -math.inf
    for series in sorted(levels, key=lambda series: series.level or 0.0):
        place = max(((series.level or 0.0) - low) / (high - low), place + 0.075)
        star = "" if series.kind == "reference" else "*"
        text = f"{series.level:.1f} {one_line(series.name.rpartition('itself: ')[2], 28)}{star}"
        colour = look_of(series)["color"]
        axes.text(1.015, place, text, color=colour, transform=axes.transAxes, va="center", fontsize=9.5)


def _legible(label: str) -> str:
    return f" {label}" if label.startswith("_") else label  # matplotlib hides labels that begin so


def _draw_legend(figure: "Figure", handles: dict[str, Any]) -> None:
    """Draw a legend in as many columns as fit below 9 inches; the figure grows by the lines that it has no room for."""
    fit = max(1, 110 // (max(map(len, handles), default=0) + 6))
    lines = max(1, math.ceil(len(handles) / fit))
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, lines - LEGEND_LINES))
    columns = max(1, math.ceil(len(handles) / lines))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def inline_svg(chart: Chart, prefix: str) -> str:
    """Return a chart as SVG for a page, with ids that begin with `prefix`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    drawn = draw_chart(axes, chart)
    for patch in (figure.patch, axes.patch):  # the page has a ground of its own
        patch.set_visible(False)
    titles = {name: [mark.text for mark in marks] for name, marks in drawn.items()}
    label = f"{chart.title}: {chart.y_label} against {chart.x_label}"
    return page_svg(_bytes(figure, "svg", fonttype="none"), prefix, "chart", titles, label)


def inline_swatch(series: Series, prefix: str) -> str:
    """Return the line and marker of a series as SVG for a page's legend."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(34 / 72, 16 / 72))
    figure.patch.set_visible(False)
    plain = {"marker": "", "linestyle": (0, (1, 2))} if series.kind == "reference" else {}
    figure.add_artist(Line2D([0.05, 0.5, 0.95], [0.5] * 3, markevery=[1], **(look_of(series) | plain)))
    return page_svg(_bytes(figure, "svg", fonttype="none"), prefix, "swatch")


def _bytes(figure: "Figure", form: str, fonttype: str = "path") -> bytes:
    """Return a figure as a file; `fonttype` "none" leaves text in an SVG text."""
    import matplotlib

    unsaid = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}  # which would differ
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": fonttype}):
        figure.savefig(buffer, format=form, dpi=160, metadata={unsaid[form]: None})
    return buffer.getvalue()


@contextmanager
def own_settings() -> Iterator[None]:
    """Let matplotlib go by its own defaults and this style meanwhile, whatever a user has set for it."""
    if "matplotlib" not in sys.modules:
        # Importing it reads these, and a file in the working directory, and may fail on what is there.
        os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
        with chdir("/"):
            import matplotlib
    import matplotlib

    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(defaults | STYLE):
        yield
