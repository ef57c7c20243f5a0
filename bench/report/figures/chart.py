"""What a figure shows, as plain data; `draw.py` draws it, for a page and for a file."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Mark:
    """A point of a chart, what it is in words, and bounds of its y; a small one is a single seed."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None
    small: bool = False


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    `style` chooses colour, marker and dashes, the same in all charts of a report. Kinds: "cells" with a bar between
    the bounds of each, a "curve" with a band between them, "published" points without a line, those "read off" a figure
    with a thin one, the "front" of the best of all, and a "reference", which is a level alone.
    """

    name: str
    style: int
    marks: tuple[Mark, ...]
    kind: Literal["cells", "curve", "published", "read off", "front", "reference"] = "cells"
    filled: bool = True
    level: float | None = None  # of a line across the chart


@dataclass(frozen=True)
class Chart:
    """Series over one axis of x; `budgets` names places on it that are marked where there is room."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log: bool = False
    budgets: tuple[tuple[float, str], ...] = ()

    @property
    def means(self) -> list[Mark]:
        """The marks that are no single seed."""
        return [mark for series in self.series for mark in series.marks if not mark.small]

    @property
    def words(self) -> list[str]:
        """What it shows, in words: the points that are no single seed, without their cells, and the references."""
        lines = [mark.text.split("\nseed ")[0] for mark in self.means if mark.text]
        return lines + [f"{series.name}: {series.level:.1f}" for series in self.series if series.kind == "reference"]


@dataclass(frozen=True)
class View:
    """Charts that are looked at together, one for each dataset."""

    name: str
    charts: tuple[Chart, ...]


def legend(charts: Iterable[Chart]) -> list[Series]:
    """Return one series of each name, in the order of the arms; what is no arm comes last."""
    named = {series.name: series for chart in charts for series in chart.series}
    return sorted(named.values(), key=lambda series: (series.kind in {"front", "reference"}, series.style, series.kind))
