"""The spreads of linear accuracy over a probe's last epochs, over probe seeds and over training seeds, kept apart."""

from collections.abc import Iterator

from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected
from bench.report.facts import linear, probe_sd, probe_seed_sd
from bench.report.labels import percent
from bench.report.sections.accuracy import NOTHING
from bench.report.tables import NONE, UNLEARNED, Table, entries


def section(found: Collected) -> Iterator[Block]:
    """Yield the table of spreads."""
    yield Heading("Spreads, kept apart")
    if not found.done:
        yield Paragraph(NOTHING)
        return
    yield Paragraph(
        "Standard deviations (ddof 1) of linear accuracy in percentage points: over the last epochs of a probe (the"
        " paper's ±) and over probes of other seeds on the same features, both as means over training seeds; and over"
        " training seeds (the ± in the tables above)."
    )
    yield TableBlock("spreads", spread_table(found))


def spread_table(found: Collected) -> Table:
    """Return the spreads of linear accuracy over a probe's last epochs, probe seeds and training seeds, in points."""
    head = ("Dataset", "Arm", "Budget", "Last epochs", "Epochs", "Probe seeds", "Probes", "Training seeds", "Seeds")
    rows = []
    for result in found.results:
        if not result.done:
            continue
        within = result.over_seeds(lambda record: probe_sd(record.final))
        over = result.over_seeds(linear)
        probes = result.over_seeds(lambda record: probe_seed_sd(record.final))
        epochs = sorted({len(record.final.linear) for record in result.done})
        counts = sorted({1 + len(record.final.further_probes) for record in result.done})
        row = [
            result.group.label,
            f"{result.label} {UNLEARNED}" if result.learned is False else result.label,
            percent(result.budget),
            f"{100 * within.mean:.2f}" if within else NONE,
            "n=" + " or ".join(map(str, epochs)),
            f"{100 * probes.mean:.2f}" if probes else NONE,
            "n=" + " or ".join(map(str, counts)),
            f"{100 * over.sd:.2f}" if over and over.sd is not None else NONE,
            f"n={len(result.done)}",
        ]
        rows.append(entries(*row))
    return Table(head, tuple(rows), names=3)
