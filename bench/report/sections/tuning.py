"""The recipes that trials have chosen, and what the trials took."""

from collections.abc import Iterator

from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Result
from bench.report.facts import linear
from bench.report.labels import percent
from bench.report.tables import NONE, Table, counted, entries, number, whole
from bench.report.trials import Trials


def section(found: Collected) -> Iterator[Block]:
    """Yield what was chosen and at what cost, where the grid is tuned."""
    tune = found.grid.tune
    if tune is None:
        return
    space = ", ".join(f"{key} {_options(tune.space[key])}" for key in sorted(tune.space))
    yield Heading("Tuning, which no cost above includes")
    yield Paragraph(
        f"Each tuned arm has, at each budget, {tune.trials} trials at the same quasi-random points of: {space}. A trial"
        f" trains, with seed {tune.seed}, on {percent(1 - tune.validation)} of the training images; the best linear"
        f" accuracy on the other {percent(tune.validation)}, a class-balanced validation split, chooses the recipe of"
        " all seeds. No trial sees the test set. Range: of the validation accuracies of all trials. TFLOP and seconds"
        f" are of training and targets, of all trials together; {NONE}: not known, or not measured alone."
    )
    yield TableBlock("tuning", tuning_table(found))


def tuning_table(found: Collected) -> Table:
    """Return what the trials of each tuned arm have chosen, and what they took."""
    names = ("Dataset", "Arm", "Budget", "Chosen recipe")
    head = (*names, "Validation, %", "Range, %", "Trials", "Steps", "TFLOP", "Seconds")
    rows = [entries(*_row(result, result.trials)) for result in found.results if result.trials]
    return Table(head, tuple(rows), names=len(names))


def _row(result: Result, trials: Trials) -> tuple[str, ...]:
    best, accuracies = trials.best, [100 * linear(record) for record in trials.done]
    count = str(len(trials.done)) + (f" of {trials.tuning.trials}" if len(trials.done) < trials.tuning.trials else "")
    return (
        *(result.group.label, result.label, percent(result.budget)),
        trials.recipe(best)
        if best
        else f"not chosen: {counted(trials.missing, 'trial')} to run"
        if trials.missing
        else NONE,
        f"{100 * linear(best):.1f}" if best else NONE,
        f"{min(accuracies):.1f} to {max(accuracies):.1f}" if accuracies else NONE,
        count,
        whole(sum(record.ledger.steps for record in trials.done)),
        number(sum(record.ledger.flops_with_targets for record in trials.done) / 1e12),
        NONE if trials.seconds is None else number(trials.seconds),
    )


def _options(options: tuple[bool | float | str, ...]) -> str:
    """Return a range, or a list of words."""
    first, *rest = options
    if isinstance(first, float) and not isinstance(first, bool):
        return f"{first:g} to {rest[-1]:g}"
    return " or ".join(str(option) for option in options)
