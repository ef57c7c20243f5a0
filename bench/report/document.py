"""The sections of a report, in their order, built once from what was collected, for every renderer.

A section is a function of a file in `sections/` that yields blocks, its heading first.
"""

from collections.abc import Callable, Iterable

from bench.report.blocks import Block, Code, Document, Paragraph
from bench.report.collect import Collected
from bench.report.sections import (
    absent,
    accuracy,
    costs,
    front,
    further,
    gains,
    label_free,
    origin,
    peers,
    published,
    savings,
    settings,
    smallest,
    spreads,
    targets,
    tuning,
    verdicts,
)

SECTIONS: tuple[Callable[[Collected], Iterable[Block]], ...] = (
    verdicts.section,
    settings.section,
    accuracy.linear_section,
    gains.section,
    smallest.section,
    savings.section,
    front.section,
    targets.section,
    published.section,
    peers.section,
    accuracy.knn_section,
    further.section,
    label_free.section,
    costs.section,
    tuning.section,
    spreads.section,
    absent.section,
    origin.section,
)


def report_document(found: Collected) -> Document:
    """Return the report."""
    count = f": {found.cells_done} of {len(found.planned)} planned cells done."
    lead = Paragraph(("Grid ", Code(found.grid.name), count))
    blocks = (block for section in SECTIONS for block in section(found))
    return Document(found.grid.title or found.grid.name, (lead, *blocks))
