"""What ReLA and the controls gain over the plain method."""

from collections.abc import Iterator

from bench.grid.cell import arm_name
from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Result, may_be_baseline, pairs
from bench.report.facts import linear, summarise
from bench.report.labels import arm_labels, percent
from bench.report.sections.accuracy import accuracy_entry
from bench.report.tables import NONE, UNLEARNED, Entry, Table, entries, summary_entry


def section(found: Collected) -> Iterator[Block]:
    """Yield the table of gains."""
    yield Heading("Gain over the plain method")
    yield Paragraph(
        "Linear accuracy in percentage points above the plain method at the same budget, and above it at the full one:"
        " mean of the differences between equal seeds ± their sample standard deviation (ddof 1), n pairs."
    )
    yield TableBlock("gains", gain_table(found))


def gain_table(found: Collected) -> Table:
    """Return what ReLA and the controls gain over the plain method, in points of linear accuracy, paired by seed."""
    head = ("Dataset", "Method", "Arm", "Budget", "Plain", "Arm's", "Gain", "Gain over full budget")
    rows = []
    for group in found.groups:
        for family in found.families:
            full = found.find(group, family.plain, 1.0)
            labels = arm_labels(family.others, short=True, tuned=found.grid.tuned)
            for arm in family.others:
                for budget in arm.budgets or found.grid.budgets:
                    plain, result = found.find(group, family.plain, budget), found.find(group, arm, budget)
                    if result is None:
                        continue
                    names = (group.label, family.name, labels[arm_name(arm)], percent(budget))
                    accuracies = (accuracy_entry(each, linear) for each in (plain, result))
                    rows.append(entries(*names, *accuracies, _gain(result, plain), _gain(result, full)))
    return Table(head, tuple(rows), names=4)


def _gain(result: Result | None, baseline: Result | None) -> Entry:
    """Return by how much a result exceeds its baseline: mean and deviation of the differences of equal seeds.

    Nothing exceeds a baseline that learned nothing.
    """
    if not may_be_baseline(baseline):
        return Entry(NONE, UNLEARNED)
    gain = summarise(linear(one) - linear(other) for one, other in pairs(result, baseline))
    return summary_entry(gain, "+.1f", 100)
