"""Tables as plain data, and numbers and names as text."""

import math
from dataclasses import dataclass

from bench.report.facts import Summary

NONE = "—"  # not planned, or not measured
DAGGER = "†"  # fewer seeds than planned
UNLEARNED = "‡"  # a seed that learned nothing
STALE = "§"  # a seed whose code has changed since


@dataclass(frozen=True)
class Entry:
    """A cell of a table: `text` carries the emphasis, `note` follows it plainly.

    Rows are sorted by `value` where the number that the text begins with does not do: in another unit, say.
    """

    text: str
    note: str = ""
    bold: bool = False
    underline: bool = False
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Column heads and rows; the first `names` columns are names, aligned to the left, the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    names: int

    def uses(self, mark: str) -> bool:
        """Return whether a mark stands in some note."""
        return any(mark in entry.note for row in self.rows for entry in row)


def entries(*parts: str | Entry) -> tuple[Entry, ...]:
    """Return the cells of a row, of which those that are mere text have no emphasis."""
    return tuple(part if isinstance(part, Entry) else Entry(part) for part in parts)


def plus_minus(summary: Summary, form: str, scale: float = 1) -> str:
    """Return mean ± sample standard deviation, in units of 1 / scale; the mean alone of one value."""
    spread = "" if summary.sd is None else f" ± {scale * summary.sd:{form.lstrip('+')}}"
    return f"{scale * summary.mean:{form}}{spread}"


def summary_entry(summary: Summary | None, form: str = ".1f", scale: float = 1) -> Entry:
    """Return mean ± sample standard deviation, in units of 1 / scale, and n."""
    return Entry(plus_minus(summary, form, scale), f"(n={summary.n})") if summary else Entry(NONE)


def number(value: float) -> str:
    """Return a quantity with two or three significant digits, the whole part in full."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:#.2g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def whole(value: float) -> str:
    """Return a count."""
    return f"{value:,.0f}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as 1 seed, 2 seeds."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def one_line(text: str, limit: int | None = 400) -> str:
    """Return text without line breaks and control characters, cut where it is too long for a report."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if limit is None or len(text) <= limit else f"{text[: limit - 1]}…"


def saved(share: float) -> str:
    """Return a share saved for people."""
    if math.isnan(share):
        return "neither gets there"
    return f"{100 * share:.0f}%" if math.isfinite(share) else "only the arm" if share > 0 else "not reached"
