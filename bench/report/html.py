"""A report as one page of HTML that needs no network: it opens from a disk, sorts its tables and prints."""

import base64
import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report import svg
from bench.report.blocks import Code, Document, Figure, Heading, Series, Strong, Text
from bench.report.tables import Entry, Table, one_line

HERE = Path(__file__).parent
_NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
_BEGINS = re.compile(rf"(?:n=|at )?({_NUMBER})")  # what the tables put before a number
_WHOLE = re.compile(rf"{_NUMBER}%?")


def html_document(document: Document) -> str:
    """Return the report. All of its text is escaped, and no browser runs anything but the page's own script."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_legible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "kind": lambda block: type(block).__name__,
        "pieces": _pieces,
        "rows": _rows,
        "legend": _legend,
        "draw": svg.draw,
        "swatch": svg.swatch,
    }
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    parts = [block.text for block in document.blocks if isinstance(block, Heading) and block.level == 2]
    return environment.get_template("page.html.jinja").render(
        document=document,
        anchors={text: f"part-{index}" for index, text in enumerate(parts, start=1)},
        sprite=svg.sprite(),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def sort_keys(table: Table) -> list[list[str | None]]:
    """Return for each row what its cells are sorted by: a number, "" where it is missing, None to go by the text.

    A column of names holds numbers when every one of its cells is nothing else.
    """
    numbers = [
        index >= table.names or all(_WHOLE.fullmatch(row[index].text) for row in table.rows)
        for index in range(len(table.head))
    ]
    return [[_number(entry) if n else None for entry, n in zip(row, numbers, strict=True)] for row in table.rows]


def _number(entry: Entry) -> str:
    value = entry.value
    if value is None and (match := _BEGINS.match(entry.text)):
        value = float(match[1].replace(",", ""))
    return f"{value:.10g}" if value is not None and math.isfinite(value) else ""


def _rows(table: Table) -> list[list[tuple[Entry, str | None, bool]]]:
    """Return the entries of each row, with what they are sorted by and whether they are numbers."""
    numbers = [index >= table.names for index in range(len(table.head))]
    return [list(zip(row, keys, numbers, strict=True)) for row, keys in zip(table.rows, sort_keys(table), strict=True)]


def _pieces(text: Text) -> Iterable[tuple[str, str]]:
    """Return the tag and the text of each piece, "" for plain text."""
    for piece in (text,) if isinstance(text, str) else text:
        match piece:
            case Strong(text):
                yield "strong", text
            case Code(text):
                yield "code", text
            case plain:
                yield "", plain


def _legend(figure: Figure) -> list[Series]:
    """Return one of the series of each name, in the order in which they are drawn."""
    everywhere = [series for view in figure.views for chart in view.charts for series in chart.series]
    named = {series.name: series for series in everywhere}
    return sorted(named.values(), key=lambda series: (series.kind in {"front", "reference"}, series.style, series.kind))


def _legible(value: Any) -> Any:
    """Return text without line breaks and control characters, but for a space at its ends; markup as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return (
        f"{' ' * value.startswith(' ')}{one_line(value, None)}{' ' * value.endswith(' ')}" if value.strip() else value
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
