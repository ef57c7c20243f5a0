"""Accuracy against cost."""

import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import told
from bench.core.files import atomic_write
from bench.grid.schema import Arm, arm_name
from bench.report.collect import Collected, Group, has_curves
from bench.report.curves import curve_figure, saving_figure
from bench.report.facts import Summary, linear, total_flops
from bench.report.labels import percent
from bench.report.references import references
from bench.report.saving import has_savings
from bench.report.tables import UNLEARNED, one_line
from bench.store.record import Finished

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, which colour-blind people tell apart, without the yellow that is too pale for lines.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#666666"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*")
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.hashsalt": "rela-bench",
}
UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1.0, "FLOP"))


@dataclass(frozen=True)
class Spot:
    """A point of a plot: mean cost, and accuracy in % over seeds."""

    cost: float
    budget: float
    accuracy: Summary


class NotDrawn(UserWarning):
    """Names a picture that could not be drawn, and says why."""


def draw_plots(found: Collected, names: Sequence[str]) -> dict[str, bytes]:
    """Return the plots as PNG and SVG by file name, nothing when no cell is done. Equal records, equal bytes."""
    if not found.done:
        return {}
    figures = {
        "accuracy_vs_steps": lambda: _figure(found, lambda record: record.ledger.steps, flops=False),
        "accuracy_vs_flops": lambda: _figure(found, total_flops, flops=True),
        "accuracy_vs_epochs": lambda: curve_figure(found, COLOURS, MARKERS),
        "saving_vs_target": lambda: saving_figure(found, COLOURS, MARKERS),
    }
    there = {"accuracy_vs_epochs": has_curves, "saving_vs_target": has_savings}
    return draw_files({name: figures[name] for name in names if name not in there or there[name](found)})


def draw_files(figures: "Mapping[str, Callable[[], Figure]]") -> dict[str, bytes]:
    """Return figures as PNG and SVG by file name; one that cannot be drawn is left out, with a warning NotDrawn."""
    files: dict[str, bytes] = {}
    for name, figure in figures.items():
        try:
            with own_settings(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                files |= image_files(name, figure())
        except Exception as error:  # of matplotlib, its fonts or its files: a picture never costs a table
            warnings.warn(f"{name} cannot be drawn: {told(error)}", NotDrawn, stacklevel=2)
    return files


def write_files(files: Mapping[str, bytes], out: Path, plots: Iterable[str]) -> None:
    """Write a report's files to a folder, and remove those of the plots that are an earlier report's alone."""
    for name in (f"{plot}.{suffix}" for plot in plots for suffix in ("png", "svg")):
        if name not in files:
            (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        with atomic_write(out / name) as file:
            file.write(content)


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


def _figure(found: Collected, cost: Callable[[Finished], float], flops: bool) -> "Figure":
    from matplotlib.figure import Figure

    groups = found.groups_done
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(9, 0.9 + 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    handles: dict[str, Line2D] = {}
    for panel, group in zip(panels, groups, strict=False):
        handles |= _draw(panel, found, group, cost, flops)
        if len(groups) > 1:
            panel.set_title(one_line(group.label, 60), loc="left")
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    title = found.grid.name if len(groups) > 1 else f"{found.grid.name}: {one_line(groups[0].label, 60)}"
    figure.suptitle(title, fontweight="bold", fontsize=12.5)
    order = [f"{result.label}{mark}" for result in found.results for mark in ("", f" {UNLEARNED}")]
    labels = sorted(handles, key=order.index)
    figure.legend(
        [handles[label] for label in labels],
        [_legible(label) for label in labels],
        loc="outside lower center",
        ncols=_legend_columns(labels),
        frameon=False,
    )
    return figure


def _draw(
    panel: "Axes", found: Collected, group: Group, cost: Callable[[Finished], float], flops: bool
) -> "dict[str, Line2D]":
    """Draw a group's arms and return the lines by label."""
    lines = {}
    spots = {arm_name(arm): _spots(found, group, arm, cost) for arm in found.grid.arms}
    everywhere = [spot.cost for line in spots.values() for spot in line]
    scale, unit = next((s, u) for s, u in UNITS if max(everywhere) >= s or s == 1.0) if flops else (1.0, "")
    stars: list[tuple[float, str, str]] = []
    for index, arm in enumerate(found.grid.arms):
        line = spots[arm_name(arm)]
        if not line:
            continue
        colour = COLOURS[index % len(COLOURS)]
        unlearned = any(result.learned is False for result in found.done_of(group, arm))
        label = found.label(arm) + f" {UNLEARNED}" * unlearned
        drawn = panel.errorbar(
            [spot.cost / scale for spot in line],
            [spot.accuracy.mean for spot in line],
            yerr=[math.nan if spot.accuracy.sd is None else spot.accuracy.sd for spot in line],
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            markersize=6.5,
            markerfacecolor=colour if arm.rela else "white",  # so that it can be told in grey, too
            markeredgewidth=1.5,
            linewidth=1.6,
            elinewidth=1.1,
            capsize=3,
        )
        lines[label] = drawn.lines[0]
        full = next((spot for spot in line if spot.budget == 1.0 and not arm.rela), None)
        if full:
            panel.axhline(full.accuracy.mean, color=colour, linestyle=(0, (5, 3)), linewidth=1.0, zorder=1.5)
            stars.append((full.accuracy.mean, f"{one_line(label, 24)}*\n{full.accuracy.mean:.1f}%", colour))
    for reference in references(found, group):
        accuracy, name = 100 * reference.linear.mean, reference.name.removeprefix("the prior itself: ")
        panel.axhline(accuracy, color=GREY, linestyle=(0, (1, 2)), linewidth=1.2, zorder=1.5)
        stars.append((accuracy, f"{one_line(name, 24)}\n{accuracy:.1f}%", GREY))
    panel.set_ylabel("Linear accuracy, % of test images")
    _cost_axis(panel, [spot for line in spots.values() for spot in line], scale, unit)
    _name_stars(panel, stars)
    return lines


def _spots(found: Collected, group: Group, arm: Arm, cost: Callable[[Finished], float]) -> list[Spot]:
    """Return the ends of an arm's cells, by rising budget."""
    spots = []
    for result in found.done_of(group, arm):
        spent, accuracy = result.over_seeds(cost), result.over_seeds(lambda record: 100 * linear(record))
        assert spent
        assert accuracy
        spots.append(Spot(spent.mean, result.budget, accuracy))
    return spots


def _cost_axis(panel: "Axes", spots: list[Spot], scale: float, unit: str) -> None:
    """Scale and label the axis of costs; without a unit they are steps, labelled with their budget."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    costs = [spot.cost / scale for spot in spots]
    log = min(costs) > 0 and max(costs) > 4 * min(costs)
    if log:
        panel.set_xscale("log")
        decades = math.log10(max(costs) / min(costs))
        panel.xaxis.set_major_locator(
            LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 4 else (1,))
        )
        panel.xaxis.set_minor_locator(NullLocator())
        panel.margins(x=0.07)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    ending = " (log scale)" if log else ""
    if unit:
        panel.set_xlabel(f"{unit} of training and targets{ending}")
        return
    budgets = {cost: percent(spot.budget) for cost, spot in zip(costs, spots, strict=True)}
    if _apart(sorted(budgets), log):
        panel.set_xticks(sorted(budgets), [f"{cost:,.0f}\n{budgets[cost]}" for cost in sorted(budgets)])
        ending = f" and budget{ending}"
    panel.set_xlabel(f"Training steps{ending}")


def _apart(costs: list[float], log: bool) -> bool:
    """Return whether ticks at these costs would stand clear of one another."""
    places = [math.log(cost) for cost in costs] if log else costs
    gaps = [right - left for left, right in pairwise(places)]
    return not gaps or min(gaps) >= 0.12 * (places[-1] - places[0])


def _name_stars(panel: "Axes", stars: list[tuple[float, str, str]]) -> None:
    """Name the dashed lines at the right edge, moved apart where they are close."""
    low, high = panel.get_ylim()
    place = -math.inf
    for value, text, colour in sorted(stars):
        place = max((value - low) / (high - low), place + 0.13)
        panel.text(1.015, place, text, color=colour, transform=panel.transAxes, va="center", fontsize=9.5)


def _legible(label: str) -> str:
    label = one_line(label, 60)
    return f" {label}" if label.startswith("_") else label  # matplotlib hides labels that begin so


def _legend_columns(labels: list[str]) -> int:
    """Return how many columns fit below a figure of 9 inches."""
    widest = max(len(_legible(label)) for label in labels)
    fit = max(1, 110 // (widest + 6))
    return math.ceil(len(labels) / math.ceil(len(labels) / fit))


def image_files(name: str, figure: "Figure") -> dict[str, bytes]:
    """Return a figure as PNG and SVG by file name. Equal figures, equal bytes."""
    return {
        f"{name}.png": _bytes(figure, "png", {"Software": None}),
        f"{name}.svg": _bytes(figure, "svg", {"Date": None}),
    }


def _bytes(figure: "Figure", form: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=160, metadata=metadata)
    return buffer.getvalue()
