"""What the trained backbones are worth beyond linear accuracy and kNN: a table for each further evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from bench.grid.cell import arm_name
from bench.grid.evaluation import EVALUATIONS, Evaluation
from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Result, may_be_baseline
from bench.report.facts import summarise
from bench.report.labels import percent
from bench.report.tables import DAGGER, UNLEARNED, Entry, Table, counted, entries, summary_entry
from bench.store.evaluated import Evaluated


def section(found: Collected) -> Iterator[Block]:
    """Yield a part for each evaluation that some of the cells have, in the order of their list."""
    asked = sorted(_asked(found), key=lambda each: (list(EVALUATIONS).index(each.name), each.model_dump_json()))
    if asked:
        yield Heading("Further evaluations")
        yield Paragraph(
            "Of the backbones at the cells' ends, frozen unless it says otherwise: mean ± sample standard deviation"
            " over training seeds. Underlined: a mean above that of the plain method at the full budget by the same"
            f" evaluation. {DAGGER} fewer seeds than planned; {UNLEARNED} a seed learned nothing."
        )
    for number, evaluation in enumerate(asked):
        yield Heading(evaluation.title, 3)
        unit = " In %." if evaluation.unit else ""
        yield Paragraph(f"{evaluation.meaning}{_settings(evaluation)}{unit}{_cost(found, evaluation)}")
        yield TableBlock(f"{evaluation.name}_{number}", further_table(found, evaluation))


def further_table(found: Collected, evaluation: Evaluation) -> Table:
    """Return what an evaluation found, a row for each arm and budget that has it."""
    results = [(result, there) for result in found.results if (there := _of(found, result, evaluation))]
    names = tuple(dict.fromkeys(name for _, there in results for each in there for name in each.values))
    plain = {arm_name(arm): family.plain for family in found.families for arm in family.others}
    rows = []
    for result, there in results:
        mark = f" {UNLEARNED}" if result.learned is False else ""
        full = found.find(result.group, plain.get(arm_name(result.arm), result.arm), 1.0)
        star = _of(found, full, evaluation) if full and may_be_baseline(full) else []
        shown = [_entry(evaluation, name, there, star) for name in names]
        if len(there) < len(result.seeds):
            shown = [replace(entry, note=f"{entry.note} {DAGGER}".strip()) for entry in shown]
        rows.append(entries(result.group.label, f"{result.label}{mark}", percent(result.budget), *shown))
    return Table(("Dataset", "Arm", "Budget", *names), tuple(rows), names=3)


def _entry(evaluation: Evaluation, name: str, there: Sequence[Evaluated], star: Sequence[Evaluated]) -> Entry:
    """Return a value over seeds: underlined if it is an accuracy whose mean is above that of `star`."""
    own, other = (summarise(each.values.get(name) for each in those) for those in (there, star))
    entry = summary_entry(own, ".1f", 100) if evaluation.unit else summary_entry(own, ".3g")
    above = own is not None and other is not None and own.mean > other.mean
    return replace(entry, underline=above and evaluation.unit != "")


def _asked(found: Collected) -> set[Evaluation]:
    """Return the evaluations, with their settings, that cells of the report have."""
    used = {record.id for record in found.done}
    return {each.evaluation for cell, there in found.evaluated.items() if cell in used for each in there}


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
