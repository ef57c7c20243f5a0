"""Accuracy while the cells trained beside what the paper reports, and what an arm saves at each accuracy."""

import math
from typing import TYPE_CHECKING

from bench.report.collect import Collected, Group, Result, curve_of
from bench.report.costs import FLOP, TARGETS, Costs
from bench.report.saving import CURVE_TARGETS, by_seed, saving, targets
from bench.report.tables import one_line, percent
from bench.spec import arm_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve_figure(found: Collected, colours: tuple[str, ...], markers: tuple[str, ...]) -> "Figure":
    """Return each arm's curve at its largest budget, with a band of one deviation, and the published points."""
    from matplotlib.figure import Figure

    groups = found.groups_done
    figure = Figure(figsize=(9, 0.9 + 3.9 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False).flatten().tolist()
    for panel, group in zip(panels, groups, strict=True):
        for index, arm in enumerate(found.grid.arms):
            colour, marker = colours[index % len(colours)], markers[index % len(markers)]
            result = largest(found, group, arm_name(arm))
            if result:
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
                style = {"color": colour, "marker": "*", "markersize": 14, "markerfacecolor": "white", "linestyle": ""}
                panel.plot(*spots, **style, label=f"{one_line(arm_name(arm), 50)}: published")
        panel.set_title(one_line(group.label, 60), loc="left")
        panel.set_xlabel("Epochs, each over the budget's share of the images")
        panel.set_ylabel("Linear accuracy, % of test images")
        panel.legend(frameon=False, fontsize=9)
    figure.suptitle(found.grid.name, fontweight="bold", fontsize=12.5)
    return figure


def saving_figure(found: Collected, colours: tuple[str, ...], markers: tuple[str, ...]) -> "Figure":
    """Return the FLOP that each arm saves, targets included, at each target accuracy, with the bootstrap's band.

    Where an arm does not get there it has no line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    groups, costs = found.groups_done, Costs(found)
    figure = Figure(figsize=(9, 0.9 + 3.9 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False).flatten().tolist()
    for panel, group in zip(panels, groups, strict=True):
        for family in found.families:
            theirs = by_seed(found, group, family.plain)
            wanted = targets(found, group, family.plain, CURVE_TARGETS)
            for arm in family.others:
                index = found.grid.arms.index(arm)
                ours = by_seed(found, group, arm)
                savings = [saving(ours, theirs, target, costs, FLOP, TARGETS) for target in wanted]
                there = [one for one in savings if one and math.isfinite(one.share)]
                if not there:
                    continue
                colour, marker = colours[index % len(colours)], markers[index % len(markers)]
                spots = [100 * one.target for one in there]
                label = next(result.label for result in found.results if result.arm == arm)
                style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.5}
                panel.plot(
                    spots, [one.share for one in there], label=f"{one_line(label, 50)} (n={there[0].n})", **style
                )
                low, high = (
                    [value if value is not None and math.isfinite(value) else one.share for one, value in bounds]
                    for bounds in ([(one, one.low) for one in there], [(one, one.high) for one in there])
                )
                panel.fill_between(spots, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.axhline(0, color="#666666", linewidth=1)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.set_title(one_line(group.label, 60), loc="left")
        panel.set_xlabel("Target: linear accuracy, % of test images")
        panel.set_ylabel("FLOP saved, targets included")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=9)
    figure.suptitle(found.grid.name, fontweight="bold", fontsize=12.5)
    return figure


def largest(found: Collected, group: Group, arm: str) -> Result | None:
    """Return an arm's result at the largest budget at which something is done."""
    there = [r for r in found.results if r.group == group and arm_name(r.arm) == arm and r.done]
    return max(there, key=lambda result: result.budget, default=None)
