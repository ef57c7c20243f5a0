"""Tables for people."""

import os
import sys
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80  # columns of a paragraph
WIDEST = 100_000  # columns: in a pipe a row is a line, unless COLUMNS says how wide it may be
LEAST = 12  # characters of a column that gives way to the others
GAP = 2  # between columns
STYLES = {  # of words that tell a state
    "done": "green",
    "running": "cyan",
    "missing": "yellow",
    "failed": "red",
    "oom": "red",
    "timeout": "red",
    "damaged": "red",
}


def table_text(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Collection[str] = (),
    shorten: str | None = None,
    states: str | None = None,
) -> str:
    """Return rows under a heading, in a terminal within its width, elsewhere a line each.

    What is too wide is folded in the last column, or cut in the middle in the one that `shorten` names. `numbers` are
    the columns that are flushed right, and the words of `states` have colours in a terminal.
    """
    console = Console(file=sys.stdout, width=_width(), highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=any(head), header_style="bold")
    cells = [list(row) for row in rows]
    flexible = head.index(shorten) if shorten else len(head) - 1
    widths = [max([len(name), *(len(row[index]) for row in cells)]) for index, name in enumerate(head)]
    others = sum(widths) - widths[flexible] + GAP * (len(head) - 1)
    room = max(LEAST, console.width - others)
    console.width = max(console.width, others + room)  # or rich would cut what does not fit
    for index, name in enumerate(head):
        fixed = None if index == flexible else widths[index]
        table.add_column(name, justify="right" if name in numbers else "left", min_width=fixed, overflow="fold")
    for row in cells:
        if shorten:
            row[flexible] = shortened(row[flexible], room)
        table.add_row(
            *(_coloured(text) if name == states else Text(text) for name, text in zip(head, row, strict=True))
        )
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _width() -> int | None:
    """Return the characters of a line; None: those of the terminal."""
    columns = os.environ.get("COLUMNS", "")
    return None if sys.stdout.isatty() else int(columns) if columns.isdecimal() and int(columns) else WIDEST


def _coloured(text: str) -> Text:
    """Return text with the colours of the states that it names."""
    shown = Text(text)
    for word, style in STYLES.items():
        shown.highlight_words([word], style)
    return shown


def shortened(text: str, length: int) -> str:
    """Return text of at most so many characters, its middle left out where it is longer."""
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"
