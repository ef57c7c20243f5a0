"""Linear and kNN accuracy in the shape of the paper's Table 1, and against cost."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from bench.grid.cell import arm_name
from bench.grid.published import READ_OFF
from bench.plan.stale import changed_text, stale_parts
from bench.report.blocks import Block, Figure, Heading, Image, Paragraph, TableBlock
from bench.report.collect import Collected, Result
from bench.report.costs import ALONE, FLOP, STEPS, TARGETS
from bench.report.curves import has_curves
from bench.report.facts import LEAST_RANK, knn, linear, linear_by_adam
from bench.report.figures.costs import cost_view, cost_views
from bench.report.figures.curves import curve_views
from bench.report.labels import Family, arm_labels, percent
from bench.report.sections import references
from bench.report.tables import DAGGER, NONE, STALE, UNLEARNED, Entry, Table, counted, entries, one_line, plus_minus
from bench.store.record import Finished

NOTHING = "No cell is done yet."
NOT_LEARNED = (
    f"{UNLEARNED} a cell of these learned nothing: its accuracy is not above that of the untrained backbone by the same"
    f" probe, or its features have collapsed (effective rank below {LEAST_RANK:g}). It is nobody's baseline."
)
FEWER = f"{DAGGER} fewer seeds than planned."
FIGURE = (
    f"Published: the curves of the figure in ReLA's public code (commit f94b55e), {READ_OFF} of all test images,"
    " and less exactly in epochs 0 to 3, where lines cross. They are no table's values. The prior of that run is not"
    " stated."
)
Accuracy = Callable[[Finished], float | None]


def linear_section(found: Collected) -> Iterator[Block]:
    """Yield linear accuracies, what they are to be seen beside, and their figures."""
    yield Heading("Linear accuracy")
    yield from _tables(found, "linear", linear, linear_caption(found), linear_by_adam)
    yield from references.blocks(found)
    if not found.grid.claims:
        yield from cost_figure(found)
    if found.done and has_curves(found):
        title, views = "Linear accuracy while training, at each arm's largest budget", curve_views(found)
        yield Figure("epochs", title, (Image(title, "accuracy_vs_epochs", views[0]),), views)
        if found.grid.figure:
            yield Paragraph(FIGURE)


def cost_figure(found: Collected) -> Iterator[Block]:
    """Yield the figure of linear accuracy against cost, where anything is done."""
    if not found.done:
        return
    steps, flops = cost_view(found, STEPS, ALONE), cost_view(found, FLOP, TARGETS)
    images = (
        Image("Linear accuracy against training steps", "accuracy_vs_steps", steps),
        Image("Linear accuracy against FLOP, those of making the targets included", "accuracy_vs_flops", flops),
    )
    yield Figure("costs", "Linear accuracy against cost", images, cost_views(found))


def knn_section(found: Collected) -> Iterator[Block]:
    """Yield kNN accuracies."""
    yield Heading("kNN accuracy")
    yield from _tables(found, "knn", knn, _knn_caption(found))


def _tables(
    found: Collected, name: str, value: Accuracy, caption: str, beside: Accuracy = lambda record: None
) -> Iterator[Block]:
    yield Paragraph(caption)
    for index, family in enumerate(found.families, start=1):
        if len(found.families) > 1:
            yield Heading(family.name, 3)
        table = accuracy_table(found, family, value, beside)
        yield TableBlock(f"{name}-{index}", table)
        yield Paragraph(one_line(" ".join(marks(found, family, table)), None))


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


def accuracy_table(found: Collected, family: Family, value: Accuracy, beside: Accuracy = lambda record: None) -> Table:
    """Return the accuracies of a method in the shape of the paper's Table 1.

    Rows: datasets x budgets. Columns: the method, its ReLA arms, and the method at the full budget (the star). Bold:
    the best of at least two in a row, the star aside; underlined: better than the star. Compared before rounding.
    `beside`: an accuracy by Adam, which decides nothing.
    """
    headers = arm_labels(family.others, short=True, tuned=found.grid.tuned)
    arms = [family.plain, *family.others]
    head = ("Dataset", "Budget", family.name, *(headers[arm_name(arm)] for arm in family.others), f"{family.name}*")
    rows = []
    for group in found.groups:
        full = found.find(group, family.plain, 1.0)
        star = full.mean(value) if full else None
        for budget in _budgets(found, family):
            results = [found.find(group, arm, budget) for arm in arms]
            means = [mean for result in results if result and (mean := result.mean(value)) is not None]
            best = max(means) if len(means) > 1 else None
            row = [accuracy_entry(result, value, beside, best, star) for result in results]
            rows.append(entries(group.label, percent(budget), *row, accuracy_entry(full, value, beside)))
    return Table(head, tuple(rows), names=2)


def accuracy_entry(
    result: Result | None,
    value: Accuracy,
    beside: Accuracy = lambda record: None,
    best: float | None = None,
    star: float | None = None,
) -> Entry:
    """Return an accuracy over the seeds: bold if its mean is `best`, underlined if it is above `star`."""
    summary = result.over_seeds(value) if result else None
    if not result or not summary:
        return Entry(NONE)
    other = result.over_seeds(beside)
    note = f"(n={summary.n}; by Adam {plus_minus(other, '.1f', 100)})" if other else f"(n={summary.n})"
    note += DAGGER if summary.n < len(result.seeds) else ""
    note += UNLEARNED if result.learned is False else ""
    note += STALE if any(map(stale_parts, result.done)) else ""
    bold, underline = summary.mean == best, star is not None and summary.mean > star
    return Entry(plus_minus(summary, ".1f", 100), note, bold, underline)


def _budgets(found: Collected, family: Family) -> Sequence[float]:
    """Return the budgets below the full one; the full one too where ReLA has it, or where there is no other."""
    budgets = {budget for arm in family.arms for budget in arm.budgets or found.grid.budgets}
    full = any(1.0 in (arm.budgets or found.grid.budgets) for arm in family.others)
    return sorted(budgets if full else budgets - {1.0} or budgets)


def stale_notes(results: Iterable[Result]) -> Iterator[str]:
    """Yield which results are stale, and the parts of the code that have changed since."""
    names = defaultdict(list)
    for result in results:
        if stale := [record for record in result.done if stale_parts(record)]:
            names[f"{changed_text(stale)} ({len(stale)} of {counted(len(result.done), 'seed')})"].append(result.name)
    for what, those in names.items():
        yield one_line(f"{STALE} stale: {what}: {'; '.join(those)}.", None)


def marks(found: Collected, family: Family, table: Table) -> list[str]:
    """Return what the marks in a family's table of accuracies mean."""
    there, name = [entry for row in table.rows for entry in row], family.name
    lines = [f"{name}* is {name} at the full budget, repeated in each row."]
    if any(entry.bold for entry in there):
        lines.append("Bold: the best at that budget.")
    if any(entry.underline for entry in there):
        lines.append(f"Underlined: better than {name}*.")
    if any(entry.bold or entry.underline for entry in there):
        lines.append("Means are compared before rounding.")
    if any(entry.text == NONE for entry in there):
        lines.append(f"{NONE}: no result.")
    if "by Adam" in "".join(entry.note for entry in there):
        lines.append("By Adam: the paper's probe on the same features, which decides nothing here.")
    if table.uses(DAGGER):
        lines.append(FEWER)
    if table.uses(UNLEARNED):
        lines.append(NOT_LEARNED)
    arms = set(map(arm_name, family.arms))
    return lines + list(stale_notes(result for result in found.results if arm_name(result.arm) in arms))
