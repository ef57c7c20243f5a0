"""Tables for people."""

import sys
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDEST = 100_000  # columns: where no terminal is, a row is one line


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()) -> None:
    """Print rows under a heading, in a terminal folded to its width, elsewhere a line each.

    `numbers` are the columns that are flushed right; "id" and they are not folded.
    """
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else WIDEST, highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=any(head))
    for name in head:
        table.add_column(
            name,
            justify="right" if name in numbers else "left",
            no_wrap=name == "id" or name in numbers,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())
