"""Accuracy while the cells trained beside what the paper reports, and what an arm saves at each accuracy."""

import math
from typing import TYPE_CHECKING, Any

from bench.grid.schema import arm_name
from bench.report.collect import Collected, Group, curve_of
from bench.report.costs import FLOP, TARGETS
from bench.report.labels import percent
from bench.report.saving import savings
from bench.report.tables import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curve_figure(found: Collected, colours: tuple[str, ...], markers: tuple[str, ...]) -> "Figure":
    """Return each arm's curve at its largest budget, with a band of one deviation, and the published points."""
    figure, panels = _panels(found)
    for panel, group in panels:
        for index, arm in enumerate(found.grid.arms):
            colour, marker = colours[index % len(colours)], markers[index % len(markers)]
            for result in found.done_of(group, arm)[-1:]:
                curve = curve_of(result)
                epochs, means = list(curve), [summary.mean for summary in curve.values()]
                spread = [summary.sd or 0.0 for summary in curve.values()]
                label = f"{one_line(result.label, 50)}, {percent(result.budget)} (n={len(result.done)})"
                panel.plot(epochs, means, color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)
                low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
                panel.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
            published = [point for point in found.grid.published if point.arm == arm_name(arm)]
            if published:
                spots = [point.epoch for point in published], [100 * point.linear for point in published]
                style: dict[str, Any] = {
                    "color": colour,
                    "marker": "*",
                    "markersize": 14,
                    "markerfacecolor": "white",
                    "linestyle": "",
                }
                panel.plot(*spots, **style, label=f"{one_line(arm_name(arm), 50)}: published")
        panel.set_xlabel("Epochs, each over the budget's share of the images")
        panel.set_ylabel("Linear accuracy, % of test images")
        panel.legend(frameon=False, fontsize=9)
    return figure


def saving_figure(found: Collected, colours: tuple[str, ...], markers: tuple[str, ...]) -> "Figure":
    """Return the FLOP that each arm saves, targets included, at each target accuracy, with the bootstrap's band.

    Where an arm does not get there, or only a bound is known, it has no line.
    """
    from matplotlib.ticker import PercentFormatter

    figure, panels = _panels(found)
    for panel, group in panels:
        for arm, line in savings(found, group, FLOP, TARGETS):
            there = [one for one in line if one.exact]
            if not there:
                continue
            index = found.grid.arms.index(arm)
            colour = colours[index % len(colours)]
            style: dict[str, Any] = {
                "color": colour,
                "marker": markers[index % len(markers)],
                "markersize": 4,
                "linewidth": 1.5,
            }
            spots = [100 * one.target for one in there]
            label = f"{one_line(found.label(arm), 50)} (n={there[0].n})"
            panel.plot(spots, [one.share for one in there], label=label, **style)
            low, high = (
                [value if value is not None and math.isfinite(value) else one.share for one, value in bounds]
                for bounds in ([(one, one.low) for one in there], [(one, one.high) for one in there])
            )
            panel.fill_between(spots, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.axhline(0, color="#666666", linewidth=1)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.set_xlabel("Target: linear accuracy, % of test images")
        panel.set_ylabel("FLOP saved, targets included")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=9)
    return figure


def _panels(found: Collected) -> "tuple[Figure, list[tuple[Axes, Group]]]":
    """Return a figure with a panel for each group in which something is finished."""
    from matplotlib.figure import Figure

    groups = found.groups_done
    figure = Figure(figsize=(9, 0.9 + 3.9 * len(groups)), layout="constrained")
    figure.suptitle(found.grid.name, fontweight="bold", fontsize=12.5)
    panels = figure.subplots(len(groups), 1, squeeze=False).flatten().tolist()
    for panel, group in zip(panels, groups, strict=True):
        panel.set_title(one_line(group.label, 60), loc="left")
    return figure, list(zip(panels, groups, strict=True))
