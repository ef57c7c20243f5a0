"""Accuracy over the epochs of training."""

from collections import defaultdict

from bench.report.collect import Collected, Result
from bench.report.facts import Summary, summarise
from bench.store.record import score_linear


def has_curves(found: Collected) -> bool:
    """Return whether there is more to a cell than its beginning and end."""
    return bool(found.grid.published or found.grid.figure) or any(len(record.curve) > 2 for record in found.done)


def curve_of(result: Result) -> dict[float, Summary]:
    """Return the linear accuracy in % of a result's seeds at each evaluation, by the epochs trained until then."""
    values: dict[float, list[float]] = defaultdict(list)
    for record in result.done:
        steps, epochs = record.curve[-1].step, record.cell.protocol.epochs
        for point in record.curve:
            values[round(point.step * epochs / steps, 3)].append(100 * score_linear(point.score))
    return {epoch: summary for epoch, there in sorted(values.items()) if (summary := summarise(there))}
