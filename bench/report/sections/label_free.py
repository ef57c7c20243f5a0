"""Whether what features show without a label tells how well a linear probe reads them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from bench.grid.evaluation import LabelFree
from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Result
from bench.report.facts import linear
from bench.report.tables import NONE, Entry, Table, entries
from bench.store.evaluated import Evaluated
from bench.store.record import Finished

LEAST = 5  # cells of a dataset, for a correlation to be shown
CONFIDENCE = 0.95


def section(found: Collected) -> Iterator[Block]:
    """Yield the correlations, where enough cells have a measure."""
    table = label_free_table(found.results, found.evaluated)
    if not table.rows:
        return
    yield Heading("Whether measures without labels tell accuracy")
    yield Paragraph(
        "Spearman's rank correlation of each measure with linear accuracy, over the n finished cells of a dataset that"
        " have both, whatever their backbone. RankMe is the effective rank that each record has. Good would be near +1"
        " for RankMe and LiDAR, and near -1 for alignment and uniformity. Interval:"
        " 95 %, by Fisher's transformation with the variance of Bonett and Wright (2000), as if cells were independent,"
        " which those of one arm are not."
    )
    yield TableBlock("label_free_correlations", table)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of n pairs; the interval is None where all of them agree, or all disagree."""

    n: int
    rank: float
    interval: tuple[float, float] | None


def correlation(one: Sequence[float], other: Sequence[float]) -> Correlation | None:
    """Return the rank correlation of pairs; None below LEAST of them, or where one side has no two values."""
    from scipy.stats import spearmanr  # takes a while, and most reports have no evaluations

    n = len(one)
    if n < LEAST or min(len(set(one)), len(set(other))) < 2:
        return None
    rank = round(float(spearmanr(one, other).statistic), 12)
    if abs(rank) == 1:
        return Correlation(n, rank, None)
    half = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((1 + rank**2 / 2) / (n - 3))
    return Correlation(n, rank, (math.tanh(math.atanh(rank) - half), math.tanh(math.atanh(rank) + half)))


def label_free_table(results: Sequence[Result], evaluated: Mapping[str, tuple[Evaluated, ...]]) -> Table:
    """Return each measure's correlation with linear accuracy, by dataset: one is easier than another for all cells.

    RankMe is of all finished cells, the others of those that were evaluated so: of several settings, those that most
    cells have.
    """
    asked = _most_asked(evaluated)
    rows: list[tuple[Entry, ...]] = []
    for group in dict.fromkeys(result.group for result in results):
        records = [record for result in results if result.group == group for record in result.done]
        for name, there in _pairs(records, evaluated, asked).items():
            if found := correlation(*zip(*there, strict=True)):
                bounds = f"{found.interval[0]:+.2f} to {found.interval[1]:+.2f}" if found.interval else NONE
                rows.append(entries(group.label, name, f"{found.rank:+.2f}", bounds, str(found.n)))
    return Table(("Dataset", "Measure", "Rank correlation", "Interval", "n"), tuple(rows), names=2)


def _pairs(
    records: Sequence[Finished], evaluated: Mapping[str, tuple[Evaluated, ...]], asked: LabelFree | None
) -> dict[str, list[tuple[float, float]]]:
    """Return each measure's values, each with the linear accuracy of its cell."""
    pairs = defaultdict[str, list[tuple[float, float]]](list)
    for record in records:
        values: dict[str, float | None] = {"RankMe": record.final.effective_rank}
        for each in evaluated.get(record.id, ()):
            values |= each.values if each.evaluation == asked else {}
        for name, value in values.items():
            if value is not None:
                pairs[name].append((value, linear(record)))
    return pairs


def _most_asked(evaluated: Mapping[str, tuple[Evaluated, ...]]) -> LabelFree | None:
    """Return the settings with which most cells are evaluated, None where none is."""
    asked = [each.evaluation for there in evaluated.values() for each in there]
    counts = Counter(each for each in asked if isinstance(each, LabelFree))
    return counts.most_common(1)[0][0] if counts else None
