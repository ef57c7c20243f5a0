"""The smallest budget that suffices: at which an arm is no worse than the plain method at full budget."""

import math
import statistics
from collections.abc import Iterator

from bench.core.stats import interval, run_of
from bench.grid.claims import CONFIDENCE, MARGIN
from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Result, may_be_baseline, pairs
from bench.report.costs import Currency
from bench.report.facts import linear
from bench.report.labels import percent
from bench.report.sections.savings import WAYS
from bench.report.tables import NONE, Entry, Table, entries


def section(found: Collected) -> Iterator[Block]:
    """Yield the table, where any budget can be compared."""
    table = smallest_table(found)
    if not table.rows:
        return
    yield Heading("The smallest sufficient budget")
    yield Paragraph(
        f"Suffices: the smallest budget at which, and at all larger ones tried, the arm is at most {percent(MARGIN)} of"
        " the images below the plain method at full budget (paired by seed, n pairs). Ruled out: budgets at which, and"
        " at all smaller ones, it is further below; the true smallest one lies between the two. Tested from the largest"
        " budget downwards, or from the smallest upwards, and no further than the first that fails: so the chance that"
        f" an arm's answer is wrong is at most {percent(round(1 - CONFIDENCE, 9))} for each of the two, however many"
        " budgets were tried. Costs are those of the budget that suffices, as shares of the plain method's at full"
        " budget."
    )
    yield TableBlock("smallest", table)


def smallest_table(found: Collected) -> Table:
    """Return the smallest budget at which each arm is no worse than the plain method at full budget, and its cost.

    A budget suffices when the lower bound of the paired difference is above -margin there and at all larger budgets,
    and is ruled out when the upper bound is below it there and at all smaller ones; the true smallest one lies between.
    """
    head = ("Dataset", "Arm", "Suffices", "Ruled out", *(f"{c.value}, {ledger}" for c, ledger in WAYS), "n")
    rows = []
    for group in found.groups_done:
        for family in found.families:
            full = found.find(group, family.plain, 1.0)
            for arm in family.arms if may_be_baseline(full) else ():
                results = [r for r in found.done_of(group, arm) if pairs(r, full) and r is not full]
                if results:
                    rows.append(_smallest(found, results, full))
    return Table(head, tuple(rows), names=2)


def _smallest(found: Collected, results: list[Result], full: Result | None) -> tuple[Entry, ...]:
    bounds = (interval([linear(one) - linear(other) for one, other in pairs(r, full)], CONFIDENCE) for r in results)
    answers = [each.above(-MARGIN) if each else "undecided" for each in bounds]
    sufficient, insufficient = run_of(reversed(answers), "yes"), run_of(answers, "no")
    enough = results[-sufficient] if sufficient else None
    ruled_out = results[insufficient - 1].budget if insufficient else None
    costs = []
    for currency, ledger in WAYS:
        ratios = found.costs.log_ratios(pairs(enough, full), currency, ledger)
        known = [ratio for ratio in ratios if ratio is not None]
        costs.append(_percentage(known if len(known) == len(ratios) else [], currency))
    first = results[0]
    n = len(pairs(enough or first, full))
    return entries(
        first.group.label,
        first.label,
        Entry(percent(enough.budget) if enough else "none tried", bold=enough is not None),
        f"up to {percent(ruled_out)}" if ruled_out is not None else "none tried",
        *costs,
        str(n),
    )


def _percentage(logs: list[float], currency: Currency) -> str:
    """Return a geometric mean of cost ratios, with its bounds where it has a spread."""
    if not logs:
        return NONE
    mean = f"{100 * math.exp(statistics.fmean(logs)):.1f}%"
    bounds = interval(logs, CONFIDENCE)
    if currency.exact or bounds is None:
        return mean
    return f"{mean} ({100 * math.exp(bounds.low):.1f} to {100 * math.exp(bounds.high):.1f}%)"
