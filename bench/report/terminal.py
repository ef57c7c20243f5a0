"""The short text of a report for the terminal."""

from collections.abc import Sequence
from pathlib import Path

from bench.report.collect import Collected
from bench.report.document import FEWER, NOT_LEARNED, several_seeds
from bench.report.facts import linear
from bench.report.origin import absences
from bench.report.tables import DAGGER, UNLEARNED, Table, accuracy_table, one_line


def terminal_text(found: Collected, files: Sequence[Path]) -> str:
    """Return the accuracies, what is absent, and where the files are."""
    parts = [f"{found.grid.name}: {found.cells_done} of {len(found.planned)} cells done"]
    parts.append(
        "Linear accuracy in % of the test images: mean"
        + (" ± standard deviation" if several_seeds(found) else "")
        + " over n seeds; * is the full budget"
    )
    for family in found.families:
        table = accuracy_table(found, family, linear)
        parts.append("\n".join([to_text(table), *[FEWER] * table.uses(DAGGER), *[NOT_LEARNED] * table.uses(UNLEARNED)]))
    absent = [line for _, lines in absences(found) for line in lines]
    if absent:
        parts.append("\n".join(map(one_line, absent)))
    parts.append("\n".join(["wrote", *(f"  {path}" for path in files)]))
    return "\n\n".join(parts)


def to_text(table: Table) -> str:
    """Return a table for a terminal."""
    lines = [list(map(one_line, table.head))]
    lines += [[one_line(f"{entry.text} {entry.note}") for entry in row] for row in table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < table.names else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
