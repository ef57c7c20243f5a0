"""The short text of a report for the terminal."""

import io
from collections.abc import Sequence

from bench.report.collect import Collected
from bench.report.facts import linear
from bench.report.sections.absent import absences
from bench.report.sections.accuracy import FEWER, NOT_LEARNED, accuracy_table, several_seeds
from bench.report.tables import DAGGER, UNLEARNED, Table, one_line

WIDE = 10_000  # characters: a table is as wide as it is, and a narrow terminal breaks its lines


def terminal_text(found: Collected, written: Sequence[object]) -> str:
    """Return the accuracies, what is absent, and what was written."""
    spread = " ± standard deviation" if several_seeds(found) else ""
    parts = [
        f"{found.grid.name}: {found.cells_done} of {len(found.planned)} cells done",
        f"Linear accuracy in % of the test images: mean{spread} over n seeds; * is the full budget",
    ]
    for family in found.families:
        table = accuracy_table(found, family, linear)
        notes = [note for mark, note in ((DAGGER, FEWER), (UNLEARNED, NOT_LEARNED)) if table.uses(mark)]
        parts.append("\n".join([to_text(table), *notes]))
    absent = [line for _, lines in absences(found) for line in lines]
    if absent:
        parts.append("\n".join(map(one_line, absent)))
    parts.append("\n".join(["wrote", *(f"  {path}" for path in written)]))
    return "\n\n".join(parts)


def to_text(table: Table) -> str:
    """Return a table for a terminal, a pipe or a file."""
    from rich.console import Console
    from rich.table import Table as Columns
    from rich.text import Text

    columns = Columns(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for index, head in enumerate(table.head):
        columns.add_column(Text(one_line(head)), justify="left" if index < table.names else "right", no_wrap=True)
    for row in table.rows:
        columns.add_row(*(Text(one_line(f"{entry.text} {entry.note}")) for entry in row))
    file = io.StringIO()
    Console(file=file, width=WIDE, color_system=None).print(columns)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
