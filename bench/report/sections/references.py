"""What accuracies are to be seen beside: the untrained backbone, the prior itself, and whether the probes converged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Group
from bench.report.facts import Summary, summarise
from bench.report.labels import prior_label, prior_name
from bench.report.tables import Table, entries, one_line, summary_entry
from bench.store.record import Moved, Score, Solved, score_linear


def blocks(found: Collected) -> Iterator[Block]:
    """Yield what the accuracies are to be seen beside, and what the probes are worth."""
    if not found.done:
        return
    yield Paragraph(one_line(" ".join(convergence(found)), None))
    table = reference_table(found)
    yield Heading("Beside these: the untrained backbone, and the prior itself", 3)
    if not table.rows:
        yield Paragraph("Not measured in these records.")
        return
    warm = any(record.cell.warm_start for record in found.done)
    yield Paragraph(
        "By the same probe and vote, on the same images: the backbone with the weights that its training begins with,"
        " of each seed, and the prior, at the size and with the normalisation that it wants. n counts networks."
        + (" A warm start begins with those of the prior instead." if warm else "")
        + " Effective rank: how many dimensions the features of the test images fill (RankMe)."
    )
    yield TableBlock("references", table)


@dataclass(frozen=True)
class Reference:
    """A network that the cells' are seen beside, and its scores: one for each network of that name."""

    name: str
    scores: tuple[Score, ...]

    @property
    def linear(self) -> Summary:
        """Its linear accuracy."""
        summary = summarise(map(score_linear, self.scores))
        assert summary
        return summary


def references(found: Collected, group: Group) -> list[Reference]:
    """Return the references of a group's cells: untrained backbones, each seed once, and priors, each once."""
    done = [record for result in found.finished(group) for record in result.done]
    backbones = {record.cell.backbone for record in done}
    there: dict[str, dict[str, Score]] = {}
    for record in sorted(done, key=lambda record: bool(record.priors)):  # the backbone before the priors
        if not record.references:
            continue
        name = f"untrained {record.cell.backbone if len(backbones) > 1 else 'backbone'}"
        untrained, prior = record.references.untrained, record.references.prior
        if untrained:
            there.setdefault(name, {})[str(record.cell.seed)] = untrained
        if prior and record.priors:
            choice, inputs = record.cell.targets_of, record.inputs
            named = prior_label(choice) if choice else prior_name(str(record.cell.warm_start))
            there.setdefault(f"the prior itself: {named}", {})[str(inputs.prior or inputs.warm_start)] = prior
    return [Reference(name, tuple(scores.values())) for name, scores in there.items()]


def reference_table(found: Collected) -> Table:
    """Return the accuracies of the references; of several networks of a name, as of an arm's seeds."""
    rows = []
    for group in found.groups:
        for reference in references(found, group):
            scores = reference.scores
            by_adam = summarise(score_linear(score.by_adam) if score.by_adam else None for score in scores)
            row = (
                summary_entry(reference.linear, scale=100),
                summary_entry(by_adam, scale=100),
                summary_entry(summarise(score.knn for score in scores), scale=100),
                summary_entry(summarise(score.effective_rank for score in scores)),
            )
            rows.append(entries(group.label, reference.name, *row))
    head = ("Dataset", "Reference", "Linear, %", "Linear by Adam, %", "kNN, %", "Effective rank")
    return Table(head, tuple(rows), names=2)


def convergence(found: Collected) -> list[str]:
    """Return a sentence for each recipe on how many of the cells' probes have converged, and how far others moved."""
    scores = [record.final for record in found.done]
    adam = [score.by_adam.end if score.by_adam else score.end for score in scores]
    lines = [_moved([end for end in adam if isinstance(end, Moved)])]
    lines.append(_solved([score.end for score in scores if isinstance(score.end, Solved)]))
    unknown = sum(score.end is None for score in scores)
    if unknown:
        lines.append(f"Whether the probe had converged was not measured in {unknown} of {len(scores)} cells.")
    return [line for line in lines if line]


def _moved(ends: Sequence[Moved]) -> str:
    moving = [end for end in ends if not end.converged]
    if not ends:
        return ""
    if not moving:
        return f"The probe by Adam had converged in all {len(ends)} cells."
    fell = sorted(100 * (1 - end.loss[1] / end.loss[0]) if end.loss[0] else 0.0 for end in moving)
    gained = sorted(100 * (end.accuracy[1] - end.accuracy[0]) for end in moving)
    return (
        f"The probe by Adam has not converged in {len(moving)} of {len(ends)} cells: over the last fifth of its epochs"
        f" its training loss fell by {fell[0]:.1f} to {fell[-1]:.1f} % and its test accuracy changed by"
        f" {gained[0]:+.1f} to {gained[-1]:+.1f} points. Converged: by no more than 1 % and 0.2 points."
    )


def _solved(ends: Sequence[Solved]) -> str:
    if not ends:
        return ""
    short, edge = (sum(flags) for flags in ([not end.converged for end in ends], [end.at_edge for end in ends]))
    text = f"The probe by L-BFGS ended at its minimum in {len(ends) - short} of {len(ends)} cells"
    return text + (f"; in {edge} its penalty is the weakest or the strongest of the list." if edge else ".")
