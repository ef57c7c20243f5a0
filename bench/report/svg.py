"""Charts as SVG for a page: colour by the page's style, told apart by marker and dashes too, every point in words."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from bench.report.blocks import Chart, Mark, Series

WIDTH, HEIGHT = 460, 330  # of the view box; small, so that its text can be read on a phone
LEFT, RIGHT, TOP, BOTTOM = 34, 448, 26, 290
BESIDE = 7  # the mean: where its seeds are drawn
COLOURS = 7  # of the page's style
DASHES = ("", "7 3", "2 3", "8 3 2 3", "4 2 1 2")
# Corners, the direction of the first in degrees, and how near to the middle the corners between them are.
MARKERS = (
    (20, 0, None),
    (4, 45, None),
    (3, -90, None),
    (4, 0, None),
    (3, 90, None),
    (4, 0, 0.35),
    (4, 45, 0.35),
    (3, 180, None),
    (3, 0, None),
    (6, 0, None),
)
STAR = (5, -90, 0.45)


def sprite() -> Markup:
    """Return the markers, to be put into a page once before its charts."""
    symbols = [_symbol(f"m{index}", shape) for index, shape in enumerate(MARKERS)] + [_symbol("star", STAR)]
    return Markup('<svg width="0" height="0" aria-hidden="true" class="sprite"><defs>{}</defs></svg>').format(
        Markup("").join(symbols)
    )


def draw(chart: Chart) -> Markup:
    """Return a chart. Its first points can be reached by the tab key, the others by the page's arrow keys."""
    axes = _Axes(chart)
    levels = [series for series in chart.series if series.level and series.kind == "cells"]
    several = len(levels) > 2  # whose names would cover one another
    parts = [axes.draw(), *(_level(series, axes, named=not several) for series in chart.series)]
    parts += [_series(series, axes) for series in chart.series if series.marks]
    return Markup('<svg viewBox="0 0 {} {}" role="group" aria-label="{}: {} against {}" class="chart">{}</svg>').format(
        WIDTH, HEIGHT, chart.title, chart.y_label, chart.x_label, Markup("").join(parts)
    )


def swatch(series: Series) -> Markup:
    """Return the line and marker of a series for a legend."""
    line = Markup('<path class="line" d="M1 8H33"{}/>').format(_dashes(series)) if series.kind != "published" else ""
    marker = "" if series.kind in {"front", "reference"} else _use(series, 17, 8)
    return Markup('<svg viewBox="0 0 34 16" class="swatch {}" aria-hidden="true">{}{}</svg>').format(
        _classes(series), line, marker
    )


class _Axes:
    """Where the numbers of a chart lie in its view box."""

    def __init__(self, chart: Chart) -> None:
        from matplotlib.ticker import LogLocator, MaxNLocator

        self.chart = chart
        marks = [mark for series in chart.series for mark in series.marks]
        xs = [mark.x for mark in marks]
        ys = [mark.y + sign * (mark.sd or 0.0) for mark in marks for sign in (-1, 1)]
        ys += [series.level.y for series in chart.series if series.level]
        self.y_ticks = [float(y) for y in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(min(ys), max(ys))]
        self.low, self.high = self.y_ticks[0], self.y_ticks[-1]
        lowest = min(xs) if chart.log or not chart.from_zero else min(0.0, *xs)
        if chart.log:
            decades = math.log10(max(xs) / min(xs))
            subs = (1, 1.5, 2, 3, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 4 else (1,)
            ticks = LogLocator(subs=subs).tick_values(min(xs), max(xs))
        else:
            ticks = MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(lowest, max(xs))
        first, last = self._scaled(lowest), self._scaled(max(xs))
        margin = 0.05 * ((last - first) or 1.0)
        self.first, self.last = first - margin * (chart.log or not chart.from_zero), last + margin
        self.x_ticks = self._clear([float(x) for x in ticks if self.first <= self._scaled(float(x)) <= self.last])

    def x(self, value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (self._scaled(value) - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - self.low) / ((self.high - self.low) or 1.0)

    def path(self, points: Sequence[tuple[float, float]], step: bool = False) -> str:
        """Return a line through points; in steps, it stays at a height until the next point."""
        if not points:
            return ""
        there = [(self.x(x), self.y(y)) for x, y in points]
        parts = [f"M{there[0][0]:.1f} {there[0][1]:.1f}"]
        parts += [f"H{x:.1f}V{y:.1f}" if step else f"L{x:.1f} {y:.1f}" for x, y in there[1:]]
        return "".join(parts)

    def draw(self) -> Markup:
        rows = [
            Markup('<path d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{:g}</text>').format(
                LEFT, self.y(y), RIGHT, LEFT - 6, self.y(y) + 4, y
            )
            for y in self.y_ticks
        ]
        columns = [
            Markup('<path d="M{:.1f} {}v5"/><text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                self.x(x), BOTTOM, self.x(x), BOTTOM + 18, _tick(x)
            )
            for x in self.x_ticks
        ]
        labels = Markup('<text x="2" y="12">{}</text><text x="{}" y="{}" text-anchor="end">{}</text>').format(
            self.chart.y_label, RIGHT, HEIGHT - 6, self.chart.x_label + " (log scale)" * self.chart.log
        )
        return Markup('<g class="axes" aria-hidden="true">{}{}{}</g>').format(
            Markup("").join(rows), Markup("").join(columns), labels
        )

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.chart.log else value

    def _clear(self, ticks: list[float]) -> list[float]:
        """Return the ticks whose labels stand clear of the one before."""
        kept: list[float] = []
        for tick in ticks:
            if not kept or self.x(tick) - self.x(kept[-1]) > 10 + 3.2 * (len(_tick(tick)) + len(_tick(kept[-1]))):
                kept.append(tick)
        return kept


def _series(series: Series, axes: _Axes) -> Markup:
    means = [mark for mark in series.marks if not mark.small]
    line = axes.path([(mark.x, mark.y) for mark in means], step=series.kind == "front")
    parts = []
    if series.kind == "curve":
        edges = [(mark.x, mark.y + (mark.sd or 0.0)) for mark in means]
        edges += [(mark.x, mark.y - (mark.sd or 0.0)) for mark in reversed(means)]
        parts.append(Markup('<path class="band" d="{}Z"/>').format(axes.path(edges)))
    if series.kind != "published":
        parts.append(Markup('<path class="line" d="{}"{}/>').format(line, _dashes(series)))
    if series.kind == "cells":
        parts.append(Markup('<path class="bars" d="{}"/>').format("".join(_bar(mark, axes) for mark in means)))
    if series.kind != "front":
        few = len(means) <= 15
        parts += [_point(series, mark, axes, large=few, first=mark is means[0]) for mark in means]
        parts += [_dot(mark, axes) for mark in series.marks if mark.small]  # above the reach of their means
    return Markup('<g class="{}">{}</g>').format(_classes(series), Markup("").join(parts))


def _point(series: Series, mark: Mark, axes: _Axes, large: bool, first: bool) -> Markup:
    x, y = axes.x(mark.x), axes.y(mark.y)
    return Markup(
        '<g class="point" tabindex="{}" role="img"><title>{}</title>{}<circle class="reach" cx="{:.1f}" cy="{:.1f}"'
        ' r="9"/></g>'
    ).format(0 if first else -1, mark.text, _use(series, x, y, 1.0 if large else 0.55), x, y)


def _dot(mark: Mark, axes: _Axes) -> Markup:
    return Markup(
        '<g class="point seed" tabindex="-1" role="img"><title>{}</title><circle cx="{:.1f}" cy="{:.1f}" r="2"/></g>'
    ).format(mark.text, axes.x(mark.x) + BESIDE, axes.y(mark.y))


def _level(series: Series, axes: _Axes, named: bool) -> Markup:
    if not series.level:
        return Markup("")
    y = axes.y(series.level.y)
    label = f"{series.name}{'' if series.kind == 'reference' else '*'}: {series.level.y:.1f}"
    name = Markup('<text x="{}" y="{:.1f}">{}</text>').format(LEFT + 2, y - 5, label)
    return Markup('<g class="{} level"><path d="M{} {:.1f}H{}"/>{}</g>').format(
        _classes(series), LEFT, y, RIGHT, name if named or series.kind == "reference" else ""
    )


def _bar(mark: Mark, axes: _Axes) -> str:
    if not mark.sd:
        return ""
    x, low, high = axes.x(mark.x), axes.y(mark.y - mark.sd), axes.y(mark.y + mark.sd)
    return f"M{x:.1f} {low:.1f}V{high:.1f}m-3 0h6M{x - 3:.1f} {low:.1f}h6"


def _use(series: Series, x: float, y: float, size: float = 1.0) -> Markup:
    name = "star" if series.kind == "published" else f"m{series.style % len(MARKERS)}"
    where = Markup('x="{:.1f}" y="{:.1f}"').format(x, y)
    if size != 1.0:
        where = Markup('transform="translate({:.1f} {:.1f}) scale({})"').format(x, y, size)
    return Markup('<use href="#{}" {}/>').format(name, where)


def _classes(series: Series) -> str:
    colour = "front" if series.kind in {"front", "reference"} else f"c{series.style % COLOURS}"
    return f"series {colour}{' filled' * series.filled}"


def _dashes(series: Series) -> Markup:
    dashes = DASHES[series.style % len(DASHES)] if series.kind not in {"front", "reference"} else ""
    return Markup(' stroke-dasharray="{}"').format(dashes) if dashes else Markup("")


def _symbol(name: str, shape: tuple[int, int, float | None]) -> Markup:
    corners, turn, inner = shape
    between = [] if inner is None else [inner]
    radii = [1.0, *between] * corners
    size = {3: 5.8, 4: 5.4, 5: 7.5}.get(corners, 4.8) * (1.1 if inner else 1.0)
    points = [
        (size * radius * math.cos(angle), size * radius * math.sin(angle))
        for index, radius in enumerate(radii)
        for angle in [math.radians(turn + 360 * index / len(radii))]
    ]
    path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points) + "Z"
    return Markup('<path id="{}" d="{}"/>').format(name, path)


def _tick(value: float) -> str:
    return f"{value:,.10g}"
