"""What the trained backbones are worth beyond linear accuracy and kNN: a table for each further evaluation."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain

from bench.grid.evaluation import EVALUATIONS, Evaluation
from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Result, may_be_baseline
from bench.report.facts import Summary, summarise
from bench.report.labels import percent
from bench.report.tables import DAGGER, UNLEARNED, Entry, Table, counted, entries, summary_entry
from bench.store.evaluated import Evaluated


def section(found: Collected) -> Iterator[Block]:
    """Yield a part for each evaluation that some of the cells have, in the order of their list."""
    if asked := evaluations(found):
        yield Heading("Further evaluations")
        yield Paragraph(
            "Of the backbones at the cells' ends, frozen unless it says otherwise: mean ± sample standard deviation"
            " over training seeds. Underlined: a mean above that of the plain method at the full budget by the same"
            f" evaluation. {DAGGER} fewer seeds than planned; {UNLEARNED} a seed learned nothing."
        )
        if (table := above_table(found)).rows:
            yield Paragraph(
                "For how many accuracies a mean is above, and which: top-1 alone, and of the corruptions their mean."
                " Means are compared as they are; no test allows for their spread."
            )
            yield TableBlock("further_above", table)
    for number, evaluation in enumerate(asked):
        yield Heading(evaluation.title, 3)
        unit = " In %." if evaluation.unit else ""
        yield Paragraph(f"{evaluation.meaning}{_settings(evaluation)}{unit}{_cost(found, evaluation)}")
        yield TableBlock(f"{evaluation.name}_{number}", further_table(found, evaluation))


def evaluations(found: Collected) -> list[Evaluation]:
    """Return the evaluations, with their settings, that cells of the report have, in the order of their list."""
    there = {each.evaluation for record in found.done for each in found.evaluated.get(record.id, ())}
    return sorted(there, key=lambda each: (list(EVALUATIONS).index(each.name), each.model_dump_json()))


def above_table(found: Collected) -> Table:
    """Return by which main accuracies each arm's mean is above the plain method's at the full budget."""
    rows, asked = [], [each for each in evaluations(found) if each.unit]
    for result, full in _beside_full(found):
        above: dict[str, bool] = {}
        for evaluation in asked if full is not result else ():
            own, star = (_summaries(found, each, evaluation) for each in (result, full))
            both = [name for name in own if name in star and evaluation.is_main(name)]
            above |= {f"{evaluation.title}, {name}": own[name].mean > star[name].mean for name in both}
        if above:
            names = (result.group.label, result.label, percent(result.budget))
            rows.append(entries(*names, f"{sum(above.values())} of {len(above)}", _which(above)))
    return Table(("Dataset", "Arm", "Budget", "Above the full budget", "By which"), tuple(rows), names=3)


def _which(above: Mapping[str, bool]) -> str:
    """Return which are above, or which are not, whatever is shorter to say."""
    most = 2 * sum(above.values()) > len(above)
    others = "; ".join(name for name, each in above.items() if each != most)
    return f"{'all but' if most else 'only'} {others}" if others else "all" if most else "none"


def further_table(found: Collected, evaluation: Evaluation) -> Table:
    """Return what an evaluation found, a row for each arm and budget that has it."""
    results = [(result, full, _summaries(found, result, evaluation)) for result, full in _beside_full(found)]
    names = tuple(dict.fromkeys(name for _, _, own in results for name in own))
    rows = []
    for result, full, own in results:
        if own:
            mark = f" {UNLEARNED}" if result.learned is False else ""
            star = _summaries(found, full, evaluation)
            shown = [_entry(evaluation, own.get(name), star.get(name), len(result.seeds)) for name in names]
            rows.append(entries(result.group.label, f"{result.label}{mark}", percent(result.budget), *shown))
    return Table(("Dataset", "Arm", "Budget", *names), tuple(rows), names=3)


def _entry(evaluation: Evaluation, own: Summary | None, star: Summary | None, seeds: int) -> Entry:
    """Return a value over seeds: underlined if it is an accuracy whose mean is above that of `star`."""
    entry = summary_entry(own, ".1f", 100) if evaluation.unit else summary_entry(own, ".3g")
    if own is None:
        return entry
    above = star is not None and own.mean > star.mean and evaluation.unit != ""
    return replace(entry, underline=above, note=entry.note + (f" {DAGGER}" if own.n < seeds else ""))


def _beside_full(found: Collected) -> Iterator[tuple[Result, Result | None]]:
    """Yield each result with that of its plain method at the full budget, None where that is nobody's baseline."""
    for group in found.groups_done:
        for family in found.families:
            full = found.find(group, family.plain, 1.0)
            for result in (result for arm in family.arms for result in found.done_of(group, arm)):
                yield result, full if may_be_baseline(full) else None


def _summaries(found: Collected, result: Result | None, evaluation: Evaluation) -> dict[str, Summary]:
    """Return the values of an evaluation over the seeds of a result, by name."""
    there = _of(found, result, evaluation) if result else []
    names = dict.fromkeys(name for each in there for name in each.values)
    summaries = {name: summarise(each.values.get(name) for each in there) for name in names}
    return {name: summary for name, summary in summaries.items() if summary}


def _of(found: Collected, result: Result, evaluation: Evaluation) -> list[Evaluated]:
    """Return an evaluation's records of a result's seeds."""
    there = chain.from_iterable(found.evaluated.get(record.id, ()) for record in result.done)
    return [each for each in there if each.evaluation == evaluation]


def _settings(evaluation: Evaluation) -> str:
    """Return the settings that are not their defaults, as a sentence."""
    own = evaluation.model_dump(exclude={"name"}, exclude_defaults=True)
    return f" With {', '.join(f'{key} {value}' for key, value in own.items())}." if own else ""


def _cost(found: Collected, evaluation: Evaluation) -> str:
    """Return what the evaluation's own training took, as a sentence; "" where nothing is trained."""
    every = [each for result in found.results for each in _of(found, result, evaluation)]
    flops = summarise(each.flops for each in every)
    if not flops:
        return ""
    mean = f"{flops.mean / 1e12:.3g} TFLOP a cell (mean of {counted(flops.n, 'cell')})"
    return f" Its training took {mean}, charged to no arm."
