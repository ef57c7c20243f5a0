"""Our accuracies beside those that the paper reports after as many epochs."""

from collections.abc import Iterator

from bench.grid.cell import arm_name
from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected
from bench.report.curves import curve_of
from bench.report.tables import Table, entries, summary_entry


def section(found: Collected) -> Iterator[Block]:
    """Yield the table, where the grid has published accuracies."""
    if not found.grid.published:
        return
    yield Heading("Beside what the paper reports")
    yield Paragraph(
        "Linear accuracy in % after as many epochs. Ours: mean ± sample standard deviation (ddof 1) over n seeds."
        " Published: as the source in the last column has it; its n and spread are not known."
    )
    yield TableBlock("published", published_table(found))


def published_table(found: Collected) -> Table:
    """Return the accuracies that the paper reports beside ours after the same number of epochs."""
    head = ("Dataset", "Arm", "Epoch", "Ours", "Published", "Source")
    rows = []
    for group in found.groups:
        for point in found.grid.published:
            arm = next(arm for arm in found.grid.arms if arm_name(arm) == point.arm)
            result = found.find(group, arm, 1.0)
            ours = curve_of(result).get(float(point.epoch)) if result else None
            published = f"{100 * point.linear:.0f}"
            rows.append(entries(group.label, point.arm, str(point.epoch), summary_entry(ours), published, point.source))
    return Table(head, tuple(rows), names=2)
