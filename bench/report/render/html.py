"""A report as one page of HTML that needs no network: it opens from a disk, sorts its tables and prints."""

import base64
import hashlib
import math
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report.blocks import Code, Document, Figure, Heading, Strong, Text
from bench.report.claims import NO_BASELINE, VERDICTS
from bench.report.figures.chart import legend
from bench.report.figures.draw import guarded, inline_svg, inline_swatch
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
        "zip": zip,
        "numeric": numeric,
        "rows": _rows,
        "legend": _legend,
        "draw": lambda chart, prefix: Markup(guarded(chart.title, partial(inline_svg, chart, prefix)) or ""),
    }
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    parts = [block.text for block in document.blocks if isinstance(block, Heading) and block.level == 2]
    return environment.get_template("page.html.jinja").render(
        document=document,
        anchors={text: f"part-{index}" for index, text in enumerate(parts, start=1)},
        answers={*VERDICTS.values(), NO_BASELINE},
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def numeric(table: Table) -> list[bool]:
    """Return which columns hold numbers: those behind the names, and names of which every one is nothing else."""
    return [
        index >= table.names or all(_WHOLE.fullmatch(row[index].text) for row in table.rows)
        for index in range(len(table.head))
    ]


def sort_keys(table: Table) -> list[list[str | None]]:
    """Return for each row what its cells are sorted by: a number, "" where it is missing, None to go by the text."""
    numbers = numeric(table)
    return [[_number(entry) if n else None for entry, n in zip(row, numbers, strict=True)] for row in table.rows]


def _number(entry: Entry) -> str:
    value = entry.value
    if value is None and (match := _BEGINS.match(entry.text)):
        value = float(match[1].replace(",", ""))
    return f"{value:.10g}" if value is not None and math.isfinite(value) else ""


def _rows(table: Table) -> list[list[tuple[Entry, str | None]]]:
    """Return the entries of each row, with what they are sorted by."""
    return [list(zip(row, keys, strict=True)) for row, keys in zip(table.rows, sort_keys(table), strict=True)]


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


def _legend(figure: Figure) -> list[tuple[str, Markup]]:
    """Return the name and the swatch of each series of a figure; the writer of XML has escaped what is in it."""
    entries = []
    for index, series in enumerate(legend(chart for view in figure.views for chart in view.charts)):
        draw = partial(inline_swatch, series, f"swatch-{figure.id}-{index}-")
        entries.append((series.name, Markup(guarded(series.name, draw) or "")))
    return entries


def _legible(value: Any) -> Any:
    """Return text without line breaks and control characters, but for a space at its ends; markup as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if not value.strip():
        return value
    before, after = (" " if there else "" for there in (value.startswith(" "), value.endswith(" ")))
    return f"{before}{one_line(value, None)}{after}"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
