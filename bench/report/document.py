"""The sections of a report, built once from what was collected, for every renderer.

A section is a function that yields blocks, its heading first, and a name in SECTIONS.
"""

from collections.abc import Callable, Iterable, Iterator

from bench.grid.claims import statements
from bench.grid.expand import protocol_of
from bench.grid.schema import CONFIDENCE, MARGIN, arm_name
from bench.report.blocks import (
    Block,
    Bullets,
    Card,
    Cards,
    Code,
    Details,
    Document,
    Figure,
    Heading,
    Paragraph,
    TableBlock,
    Verdict,
)
from bench.report.charts import cost_views, curve_views, saving_views
from bench.report.claims import (
    Judgement,
    certainty,
    claim_sentence,
    difference,
    judged,
    rooms,
    targets_table,
    verdict_table,
)
from bench.report.collect import Collected, has_curves
from bench.report.costs import JOULES
from bench.report.facts import (
    LEAST_RANK,
    TOLERANCE,
    beside_others,
    clock_gap,
    empty_targets,
    knn,
    linear,
    linear_by_adam,
)
from bench.report.labels import percent
from bench.report.origin import absences, cell_named, counted, provenance
from bench.report.references import convergence, reference_table
from bench.report.saving import REACHED_BY_CHANCE, has_savings, saving_table, smallest_table
from bench.report.tables import (
    DAGGER,
    NONE,
    UNLEARNED,
    Table,
    accuracy_table,
    cost_table,
    gain_table,
    one_line,
    published_table,
    run_table,
    spread_table,
)
from bench.store.record import OTHER_WORK, Finished

NOTHING = "No cell is done yet."
NOT_LEARNED = (
    f"{UNLEARNED} a cell of these learned nothing: its accuracy is not above that of the untrained backbone by the same"
    f" probe, or its features have collapsed (effective rank below {LEAST_RANK:g}). It is nobody's baseline."
)
FEWER = f"{DAGGER} fewer seeds than planned."


def report_document(found: Collected) -> Document:
    """Return the report."""
    return Document(found.grid.title or found.grid.name, tuple(b for section in SECTIONS for b in section(found)))


def settings(found: Collected) -> list[str]:
    """Return a line on each dataset: what was trained on it, and how."""
    grid = found.grid
    lines = []
    for dataset in grid.datasets:
        titles = ", ".join(group.label for group in found.groups if group.dataset == dataset.name)
        images = (
            f"{dataset.train_images:,} training images"
            if dataset.train_images
            else "all training images that were there"
        )
        protocol = protocol_of(grid, dataset)
        lines.append(
            f"{titles}: {images}, backbone {dataset.backbone or grid.backbone}, {protocol.epochs} epochs (each over the"
            f" budget's share of the images), batch {protocol.batch_size}, {protocol.precision},"
            f"{f' compiled ({protocol.compile}),' if protocol.compile else ''}"
            f"{' probe by L-BFGS,' * (protocol.probe.recipe == 'lbfgs')} {counted(len(grid.seeds), 'seed')} planned."
        )
    return lines


def linear_caption(found: Collected) -> str:
    """Return what a linear accuracy is a mean of."""
    by_epochs = [record for record in found.done if record.cell.protocol.probe.recipe == "adam"]
    epochs = sorted({len(record.final.linear) for record in by_epochs})
    last = (
        f" A seed's value is the mean over the probe's last {' or '.join(map(str, epochs))} epochs." if epochs else ""
    )
    return (
        f"Share of the test images that a linear probe on frozen features gets right, in %. {_over_seeds(found)}{last}"
    )


def _knn_caption(found: Collected) -> str:
    ks = sorted({record.cell.protocol.knn.k for record in found.done})
    of = f" of the {' or '.join(map(str, ks))} nearest training images" if ks else ""
    return f"Share of the test images that a weighted vote{of} gets right, in %. {_over_seeds(found)}"


def _over_seeds(found: Collected) -> str:
    if not found.done:
        return NOTHING
    text = "Means over n training seeds"
    if several_seeds(found):
        text += "; ± is the sample standard deviation over them (ddof 1)"
    if any(len(result.done) == 1 for result in found.results):
        text += "; one seed (n=1) has no spread, and a difference between single seeds may be chance"
    return text + "."


def several_seeds(found: Collected) -> bool:
    """Return whether anything has a spread over seeds."""
    return any(len(result.done) > 1 for result in found.results)


def _lead(found: Collected) -> Iterator[Block]:
    count = f": {found.cells_done} of {len(found.planned)} planned cells done."
    yield Paragraph(("Grid ", Code(found.grid.name), count))


def _verdicts(found: Collected) -> Iterator[Block]:
    claims = judged(found)
    if not claims:
        return
    yield Heading("Verdicts")
    yield Cards(tuple(map(_card, claims)))
    yield Paragraph(
        "Reproduced: the accuracy is above the margin and the cost is within the share. Not reproduced: the accuracy is"
        " below the margin, or the cost is above the share. Differences are points, paired by seed, tested and bounded"
        " by Student's t over n pairs. In brackets: the cost as a share of the baseline's, a geometric mean over pairs;"
        " steps, images and FLOP are counted and have no spread to allow for. Seeds: how many would decide what is"
        " inconclusive, if means, spreads and the other verdicts stayed as they are. Three ledgers: training alone;"
        " with making the targets, charged in full to each cell; with the prior's own training, shared by the cells"
        " that use it."
    )
    yield Paragraph(certainty(claims))
    yield Paragraph(_baselines(found))
    yield from _not_alone(found)
    yield Details("The verdicts in every cost", TableBlock("verdicts", verdict_table(claims)), brief=True)
    yield Bullets(tuple(map(one_line, rooms(found, claims))))


def _baselines(found: Collected) -> str:
    """Return what to say of baselines that learned nothing, or of which nobody knows."""
    names = {claim.baseline for claim in statements(found.grid)}
    those = [result for result in found.results if result.done and arm_name(result.arm) in names]
    bad = [result.name for result in those if result.learned is False]
    unknown = sum(result.learned is None for result in those)
    lines = [f"{NOT_LEARNED} Here: {'; '.join(bad)}."] if bad else []
    if unknown:
        lines.append(f"Whether the baselines learned anything was not measured for {unknown} of {len(those)} of them.")
    return one_line(" ".join(lines), None)


def _card(judgements: list[Judgement]) -> Card:
    """Return a claim with its verdicts on a group's data and the costs in which each holds."""
    first, verdicts = judgements[0], []
    for answer in dict.fromkeys(one.verdict for one in judgements):
        those = [one for one in judgements if one.verdict == answer]
        costs = "every cost" if len(those) == len(judgements) else _costs_named(those, judgements)
        points = f"{difference(first)} points, " if first.difference else ""
        numbers = f"{points}n={first.n}"
        verdicts.append(Verdict(first.group.label, answer, costs, numbers))
    return Card(first.claim.name, claim_sentence(first.claim), tuple(verdicts))


def _costs_named(those: list[Judgement], judgements: list[Judgement]) -> str:
    """Return what the costs of some judgements are called together."""
    names = []
    for ledger in dict.fromkeys(one.ledger for one in those):
        currencies = [one.currency.value for one in those if one.ledger == ledger]
        everything = len(currencies) == sum(one.ledger == ledger for one in judgements)
        names.append(f"{'all costs' if everything else ', '.join(currencies)} {ledger}")
    return "; ".join(names)


def _targets(found: Collected) -> Iterator[Block]:
    if found.grid.targets_share is None:
        return
    yield Heading("What making the targets costs")
    yield Paragraph(
        f"Claim: at most {percent(found.grid.targets_share)} of the plain method's training at full budget. Means over"
        " n pairs of seeds; the targets are charged in full to each cell."
    )
    yield TableBlock("targets", targets_table(found))


def _savings(found: Collected) -> Iterator[Block]:
    table = saving_table(found)
    if not table.rows:
        return
    yield Heading("What reaching an accuracy costs")
    yield Paragraph(
        "The saving at a target accuracy: 1 minus the arm's cost as a share of the plain method's. A seed's cost is"
        " that of its cheapest evaluation, at any budget, that holds the target: it, the later ones of its run and the"
        " ends of the arm's larger budgets are no lower. One that never does is infinite and stays in the median over n"
        " seeds. An arm of three seeds that stays half a point below a target, with evaluations that scatter by half a"
        f" point, is taken to reach it with a chance of {REACHED_BY_CHANCE}, however many evaluations it has. At least,"
        " at most: a run that holds the target at its first evaluation had reached it at an unknown earlier step; where"
        " both sides had, they are not comparable. In brackets: 95 % of the medians when the seeds are drawn anew"
        " (bootstrap), which few seeds make coarse. The highest target is the plain method's median at full budget. The"
        " figure leaves out what is only a bound."
    )
    yield TableBlock("savings", table)
    if has_savings(found):
        title = "What is saved at each target accuracy"
        yield Figure("savings-curve", title, (("FLOP saved at each target", "saving_vs_target"),), saving_views(found))


def _smallest_budget(found: Collected) -> Iterator[Block]:
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


def _settings(found: Collected) -> Iterator[Block]:
    yield Bullets(tuple(map(one_line, settings(found))))


def _linear(found: Collected) -> Iterator[Block]:
    yield Heading("Linear accuracy")
    yield from _accuracy(found, "linear", linear, linear_caption(found), linear_by_adam)
    yield from _beside(found)
    if found.done:
        steps = ("Linear accuracy against training steps", "accuracy_vs_steps")
        flops = ("Linear accuracy against FLOP, those of making the targets included", "accuracy_vs_flops")
        yield Figure("costs", "Linear accuracy against cost", (steps, flops), cost_views(found))
        if has_curves(found):
            title = "Linear accuracy while training, at each arm's largest budget"
            yield Figure("epochs", title, ((title, "accuracy_vs_epochs"),), curve_views(found))


def _knn(found: Collected) -> Iterator[Block]:
    yield Heading("kNN accuracy")
    yield from _accuracy(found, "knn", knn, _knn_caption(found))


def _beside(found: Collected) -> Iterator[Block]:
    """Yield what the accuracies are to be seen beside, and what the probes are worth."""
    if not found.done:
        return
    yield Paragraph(one_line(" ".join(convergence(found)), None))
    table = reference_table(found)
    yield Heading("Beside these: the untrained backbone, and the prior itself", 3)
    if not table.rows:
        yield Paragraph("Not measured in these records.")
        return
    yield Paragraph(
        "By the same probe and vote, on the same images: the backbone with the weights that its training begins with,"
        " of each seed, and the prior, at the size and with the normalisation that it wants. n counts networks."
        " Effective rank: how many dimensions the features of the test images fill (RankMe)."
    )
    yield TableBlock("references", table)


def _accuracy(
    found: Collected,
    name: str,
    value: Callable[[Finished], float],
    caption: str,
    beside: Callable[[Finished], float | None] = lambda record: None,
) -> Iterator[Block]:
    yield Paragraph(caption)
    for index, family in enumerate(found.families, start=1):
        if len(found.families) > 1:
            yield Heading(family.name, 3)
        table = accuracy_table(found, family, value, beside)
        yield TableBlock(f"{name}-{index}", table)
        yield Paragraph(one_line(" ".join(marks(table, family.name))))


def _gains(found: Collected) -> Iterator[Block]:
    yield Heading("Gain over the plain method")
    yield Paragraph(
        "Linear accuracy in percentage points above the plain method at the same budget, and above it at the full one:"
        " mean of the differences between equal seeds ± their sample standard deviation (ddof 1), n pairs."
    )
    yield TableBlock("gains", gain_table(found))


def _published(found: Collected) -> Iterator[Block]:
    if not found.grid.published:
        return
    yield Heading("Beside what the paper reports")
    yield Paragraph(
        "Linear accuracy in % after as many epochs. Ours: mean ± sample standard deviation (ddof 1) over n seeds."
        " Published: as the source in the last column has it; its n and spread are not known."
    )
    yield TableBlock("published", published_table(found))


def marks(table: Table, name: str) -> list[str]:
    """Return what the marks in a table of accuracies mean."""
    entries = [entry for row in table.rows for entry in row]
    lines = [f"{name}* is {name} at the full budget, repeated in each row."]
    if any(entry.bold for entry in entries):
        lines.append("Bold: the best at that budget.")
    if any(entry.underline for entry in entries):
        lines.append(f"Underlined: better than {name}*.")
    if any(entry.bold or entry.underline for entry in entries):
        lines.append("Means are compared before rounding.")
    if any(entry.text == NONE for entry in entries):
        lines.append(f"{NONE}: no result.")
    if "by Adam" in "".join(entry.note for entry in entries):
        lines.append("By Adam: the paper's probe on the same features, which decides nothing here.")
    if table.uses(DAGGER):
        lines.append(FEWER)
    if table.uses(UNLEARNED):
        lines.append(NOT_LEARNED)
    return lines


def _costs(found: Collected) -> Iterator[Block]:
    yield Heading("What it cost")
    if not found.done:
        yield Paragraph(NOTHING)
        return
    yield Paragraph(
        "Means over the n seeds. TFLOP: 10^12 floating-point operations, 2 per multiply-add. Each cell is charged for"
        " making its targets in full, even where they were cached; the wall time is what the cell itself took, without"
        " targets that were cached. The share is that of the targets in the TFLOP of training and targets together."
        " Prior's TFLOP: the training of a prior that the grid makes, shared by the cells that use it;"
        f" {NONE}: not known.{' Joules are those of the GPU.' * found.costs.measured(JOULES)}"
    )
    yield from _not_alone(found, named=True)
    for text in sorted({record.ledger.flops_not_counted for record in found.done} - {""}):
        yield Paragraph(one_line(f"FLOP: {text}.".replace("..", ".")))
    for index, group in enumerate(found.groups, start=1):
        table = cost_table(found, group)
        if table.rows:
            yield Heading(group.label, 3)
            yield TableBlock(f"costs-{index}", table)
    gaps = [(result, record, gap) for result in found.results for record in result.done if (gap := clock_gap(record))]
    if gaps:
        yield Paragraph(f"In these cells the phases do not add up to the wall time within {percent(TOLERANCE)}:")
        yield Bullets(
            tuple(
                one_line(f"{cell_named(result, record)} ({record.id}): the phases are {_gap(gap)} the wall time")
                for result, record, gap in gaps
            )
        )
    empty = [(result, most) for result in found.results if (most := max(map(empty_targets, result.done), default=0))]
    if empty:
        yield Paragraph(
            "Where a prior's features do not vary, it tells nothing: such components of the targets are 0. At most:"
        )
        yield Bullets(tuple(one_line(f"{result.name}: {counted(most, 'component')}") for result, most in empty))
    wrapped = [record for record in found.done if record.cell.rela]
    if wrapped and all(record.switch_step is None for record in wrapped):
        yield Paragraph(
            "ReLA never switched: its cells were trained on the ReLA loss to the end, and never on the loss of the"
            " method that they wrap."
        )
    yield Details("Each run: its accuracy, its cost, and where ReLA switched", TableBlock("runs", run_table(found)))


def _not_alone(found: Collected, named: bool = False) -> Iterator[Block]:
    """Yield how many cells' seconds count nowhere and why, if there are any, and which these are if `named`."""
    beside = {record.id: costs for record in found.done if (costs := beside_others(record))}
    reasons = list(dict.fromkeys(cost.company for costs in beside.values() for cost in costs))
    if not beside:
        return
    yield Paragraph(
        f"Seconds and joules of {len(beside)} of {counted(len(found.done), 'finished cell')} were not measured alone,"
        f" and count nowhere. Beside the cell, or while its targets were made: {'; '.join(reasons)}."
    )
    for reason in reasons if named else ():
        names = []
        for result in found.results:
            costs = [cost for record in result.done for cost in beside.get(record.id, ()) if cost.company == reason]
            if costs:
                loads = [cost.other_load for cost in costs if cost.other_load is not None]
                share = f" ({min(loads):.0%} to {max(loads):.0%})" if reason == OTHER_WORK else ""
                names.append(f"{result.name}{share}")
        yield Bullets((one_line(f"{reason}: {'; '.join(names)}", limit=None),))


def _gap(gap: float) -> str:
    return f"{abs(gap):.1%} {'more' if gap > 0 else 'less'} than"


def _spreads(found: Collected) -> Iterator[Block]:
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


def _absent(found: Collected) -> Iterator[Block]:
    yield Heading("What is not in the numbers")
    there = absences(found)
    if not there:
        yield Paragraph(f"Nothing: all {len(found.planned)} planned cells are done, and every record was used.")
    for title, lines in there:
        yield Heading(title, 3)
        yield Bullets(tuple(map(one_line, lines)))


def _origin(found: Collected) -> Iterator[Block]:
    yield Heading("Where the numbers come from")
    yield Bullets(tuple(provenance(found)))


SECTIONS: tuple[Callable[[Collected], Iterable[Block]], ...] = (
    _lead,
    _verdicts,
    _settings,
    _linear,
    _gains,
    _smallest_budget,
    _savings,
    _targets,
    _published,
    _knn,
    _costs,
    _spreads,
    _absent,
    _origin,
)
