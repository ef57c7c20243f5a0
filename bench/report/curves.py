"""Accuracy while the cells trained, and what the paper reports beside it."""

from typing import TYPE_CHECKING

from bench.grid import arm_name
from bench.report.collect import Collected, curve_of
from bench.report.tables import one_line, percent

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
                style = {"color": colour, "marker": "*", "markersize": 14, "markerfacecolor": "white", "linestyle": ""}
                panel.plot(*spots, **style, label=f"{one_line(arm_name(arm), 50)}: published")
        panel.set_title(one_line(group.label, 60), loc="left")
        panel.set_xlabel("Epochs, each over the budget's share of the images")
        panel.set_ylabel("Linear accuracy, % of test images")
        panel.legend(frameon=False, fontsize=9)
    figure.suptitle(found.grid.name, fontweight="bold", fontsize=12.5)
    return figure
