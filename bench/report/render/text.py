"""The short text of a report for the terminal."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from textwrap import fill

from bench.core.terminal import WIDTH, table_text
from bench.grid.cell import arm_name
from bench.report.claims import Judgement, judged
from bench.report.collect import Collected, Group
from bench.report.facts import linear
from bench.report.labels import percent
from bench.report.sections.absent import absences
from bench.report.sections.accuracy import FEWER, NOT_LEARNED, accuracy_entry, several_seeds, stale_notes
from bench.report.sections.references import references
from bench.report.sections.verdicts import verdict_heading, verdicts_in_words
from bench.report.tables import DAGGER, UNLEARNED, Table, entries, one_line, plus_minus


def terminal_text(found: Collected, written: Sequence[str]) -> str:
    """Return the accuracies, the verdicts, what is absent, and what was written."""
    counts = {len(result.done) for result in found.results if result.done}
    n = f"n={min(counts)}" if len(counts) == 1 else "n"
    spread = f" ± deviation over {n} seeds" if several_seeds(found) else ""
    parts = [
        f"{found.grid.name}: {found.cells_done} of {len(found.planned)} cells done",
        f"Linear accuracy, % of the test images, at each budget: mean{spread}",
    ]
    for group in found.groups:
        table = _accuracies(found, group, several=len(counts) > 1)
        notes = [note for mark, note in ((DAGGER, FEWER), (UNLEARNED, NOT_LEARNED)) if table.uses(mark)]
        notes += stale_notes(result for result in found.results if result.group == group)
        beside = [f"{each.name} {plus_minus(each.linear, '.1f', 100)}" for each in references(found, group)]
        notes += [f"Beside these, by the same probe: {'; '.join(beside)}."] if beside else []
        parts.append("\n".join([group.label, to_text(table), *(fill(one_line(note, None), WIDTH) for note in notes)]))
    if claims := judged(found):
        parts.append(verdict_text(claims))
    absent = [line for _, lines in absences(found) for line in lines]
    if absent:
        parts.append("\n".join(map(one_line, absent)))
    whole = partial(fill, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)  # paths
    parts.append("\n".join(whole(f"wrote {each}", WIDTH) for each in written))
    return "\n\n".join(parts)


def _accuracies(found: Collected, group: Group, several: bool) -> Table:
    """Return the accuracies on a group's data: a row for each arm, a column for each budget.

    `several`: the numbers of seeds differ, so that each accuracy has its own.
    """
    there = [result for result in found.results if result.group == group]
    budgets = sorted({result.budget for result in there})
    rows = []
    for arm in {arm_name(result.arm): result.arm for result in there}.values():
        row = [accuracy_entry(found.find(group, arm, budget), linear) for budget in budgets]
        row = row if several else [replace(each, note=re.sub(r"\(n=\d+\)", "", each.note)) for each in row]
        rows.append(entries(found.label(arm), *row))
    return Table(("arm", *map(percent, budgets)), tuple(rows), names=1)


def verdict_text(claims: list[list[Judgement]]) -> str:
    """Return which claims are what."""
    return f"{verdict_heading(claims)}\n{table_text(('', ''), verdicts_in_words(claims))}"


def to_text(table: Table) -> str:
    """Return a table for a terminal, a pipe or a file."""
    rows = [[one_line(f"{entry.text} {entry.note}").strip() for entry in row] for row in table.rows]
    head = [one_line(name) for name in table.head]
    return table_text(head, rows, head[table.names :], shorten=head[table.names - 1])
