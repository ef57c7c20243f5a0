"""What making the targets costs beside the plain method's training."""

import statistics
from collections.abc import Iterator

from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.claims import VERDICTS
from bench.report.collect import Collected, pairs
from bench.report.costs import ALONE, FLOP, JOULES, SECONDS, TARGETS, Costs, Currency
from bench.report.labels import percent
from bench.report.tables import NONE, Entry, Table, entries
from bench.store.record import Finished


def section(found: Collected) -> Iterator[Block]:
    """Yield the table, where the grid claims a share."""
    if found.grid.targets_share is None:
        return
    yield Heading("What making the targets costs")
    yield Paragraph(
        f"Claim: at most {percent(found.grid.targets_share)} of the plain method's training at full budget. Means over"
        " n pairs of seeds; the targets are charged in full to each cell."
    )
    yield TableBlock("targets", targets_table(found))


def targets_table(found: Collected) -> Table:
    """Return whether making the targets costs more than the grid's `targets_share` of the plain method's training."""
    limit = found.grid.targets_share or 0.0
    currencies = [currency for currency in found.costs.currencies if currency in (FLOP, SECONDS, JOULES)]
    head = ("Dataset", "Arm", *(f"Targets, share of {currency.value}" for currency in currencies), "n")
    rows = []
    for group in found.groups:
        for family in found.families:
            star = found.find(group, family.plain, 1.0)
            for arm in family.others:
                results = found.done_of(group, arm) if arm.targets_of else []
                paired = pairs(results[0], star) if results else []
                if paired:
                    answers = (_answer(found.costs, currency, paired, limit) for currency in currencies)
                    rows.append(entries(group.label, results[0].label, *answers, str(len(paired))))
    return Table(head, tuple(rows), names=2)


def _answer(costs: Costs, currency: Currency, paired: list[tuple[Finished, Finished]], limit: float) -> Entry:
    shares = [_targets_share(costs, currency, *pair) for pair in paired]
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return Entry(NONE)
    mean = statistics.fmean(known)
    return Entry(VERDICTS["yes" if mean <= limit else "no"], f"({100 * mean:.2g}%)", True, value=mean)


def _targets_share(costs: Costs, currency: Currency, one: Finished, other: Finished) -> float | None:
    """Return what making the targets of one cell cost, as a share of the other's training."""
    made, baseline = costs.part(one, currency, TARGETS), costs.of(other, currency, ALONE)
    return made / baseline if made is not None and baseline else None
