"""What the cells cost: steps, images, FLOP, seconds, joules and memory."""

from collections.abc import Callable, Iterator

from bench.report.blocks import Block, Bullets, Details, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Group, Result
from bench.report.costs import ALONE, FLOP, JOULES, PRIOR, TARGETS
from bench.report.facts import (
    TOLERANCE,
    beside_others,
    clock_gap,
    empty_targets,
    knn,
    learned,
    linear,
    phase_seconds,
    target_flops,
    wall_seconds,
)
from bench.report.labels import percent
from bench.report.sections.accuracy import NOTHING
from bench.report.tables import NONE, UNLEARNED, Table, counted, entries, number, one_line, whole
from bench.store.record import OTHER_WORK, Finished

Value = Callable[[Finished], float | None]


def section(found: Collected) -> Iterator[Block]:
    """Yield what the arms cost, what is odd about it, and each run."""
    yield Heading("What it cost")
    if not found.done:
        yield Paragraph(NOTHING)
        return
    yield Paragraph(
        "Means over the n seeds. TFLOP: 10^12 floating-point operations, 2 per multiply-add. Each cell is charged for"
        " making its targets in full, even where they were cached; the wall time is what the cell itself took, without"
        " targets that were cached. The share is that of the targets in the TFLOP of training and targets together."
        " Prior's TFLOP: the training of a prior that the grid makes, shared by the cells that use it;"
        f" {NONE}: not known.{' Joules are those of the GPU.' if JOULES in found.costs.currencies else ''}"
    )
    yield from not_alone(found, named=True)
    for text in sorted({record.ledger.flops_not_counted for record in found.done} - {""}):
        yield Paragraph(one_line(f"FLOP: {text}.".replace("..", ".")))
    for index, group in enumerate(found.groups, start=1):
        table = cost_table(found, group)
        if table.rows:
            yield Heading(group.label, 3)
            yield TableBlock(f"costs-{index}", table)
    yield from _odd(found)
    yield Details("Each run: its accuracy, its cost, and where ReLA switched", TableBlock("runs", run_table(found)))


def _odd(found: Collected) -> Iterator[Block]:
    """Yield phases that miss the wall time, targets that tell nothing, and that ReLA never switched."""
    gaps = [(result, record, gap) for result in found.results for record in result.done if (gap := clock_gap(record))]
    if gaps:
        yield Paragraph(f"In these cells the phases do not add up to the wall time within {percent(TOLERANCE)}:")
        lines = (
            f"{result.name}, seed {record.cell.seed} ({record.id}): the phases are"
            f" {abs(gap):.1%} {'more' if gap > 0 else 'less'} than the wall time"
            for result, record, gap in gaps
        )
        yield Bullets(tuple(map(one_line, lines)))
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


def not_alone(found: Collected, named: bool = False) -> Iterator[Block]:
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


def cost_table(found: Collected, group: Group) -> Table:
    """Return what the arms spent on a group's data: means over the seeds."""
    columns = _columns(found)
    results = found.finished(group)
    rows = [
        entries(result.label, percent(result.budget), *(text(result) for text in columns.values()))
        for result in results
    ]
    return Table(("Arm", "Budget", *columns), tuple(rows), names=2)


def _columns(found: Collected) -> dict[str, Callable[[Result], str]]:
    """Return what a row of the table of costs says of a result, by the head of the column."""

    def seconds(phase: str) -> Callable[[Result], str]:
        return _mean(lambda record: phase_seconds(record, phase))

    costs = found.costs
    joules = {
        "Train J": _mean(lambda record: costs.part(record, JOULES, ALONE)),
        "Targets J": _mean(lambda record: costs.part(record, JOULES, TARGETS)),
    }
    return {
        "n": lambda result: str(len(result.done)),
        "Steps": _mean(lambda record: record.ledger.steps, whole),
        "Images": _mean(lambda record: record.ledger.images, whole),
        "Train TFLOP": _mean(lambda record: record.ledger.flops, _tera),
        "Targets TFLOP": _mean(target_flops, _tera),
        "Prior's TFLOP": _mean(lambda record: costs.part(record, FLOP, PRIOR), _tera),
        "Targets, share": _mean(_targets_share, lambda share: f"{number(100 * share)}%"),
        **{f"{name} s": seconds(name.lower()) for name in ("Train", "Targets", "Eval", "Other")},
        "Wall s": _mean(wall_seconds),
        **(joules if JOULES in costs.currencies else {}),
        "Peak MiB": _mean(lambda record: record.ledger.peak_memory_bytes, lambda peak: whole(peak / 2**20)),
        "ReLA switched": _switch,
    }


def _mean(value: Value, form: Callable[[float], str] = number) -> Callable[[Result], str]:
    """Return what gives the mean over a result's seeds, with n where it is not that of all finished ones."""

    def text(result: Result) -> str:
        summary = result.over_seeds(value)
        if summary is None:
            return NONE
        return form(summary.mean) + (f" (n={summary.n})" if summary.n < len(result.done) else "")

    return text


def _tera(value: float) -> str:
    return number(value / 1e12)


def _targets_share(record: Finished) -> float:
    return target_flops(record) / (record.ledger.flops_with_targets or 1)


def _switch(result: Result) -> str:
    """Return at which step ReLA handed over to the method, in all seeds."""
    if not result.arm.rela:
        return ""
    steps = [record.switch_step for record in result.done if record.switch_step is not None]
    if not steps:
        return f"not in {max(record.ledger.steps for record in result.done):,} steps"
    text = f"at {min(steps):,}" + (f" to {max(steps):,}" if min(steps) < max(steps) else "")
    return text if len(steps) == len(result.done) else f"{text} ({len(steps)} of {len(result.done)} seeds)"


def run_table(found: Collected) -> Table:
    """Return a row for each finished record."""
    names = ("Dataset", "Arm", "Budget", "Seed", "Cell")
    costs = ("Steps", "TFLOP with targets", "Train s", "Targets s", "ReLA switched at step")
    rows = [entries(*_run(result, record)) for result in found.results for record in result.done]
    return Table((*names, "Linear, %", "kNN, %", *costs), tuple(rows), names=len(names))


def _run(result: Result, record: Finished) -> list[str]:
    seconds = [phase_seconds(record, phase) for phase in ("train", "targets")]
    switched = "never" if record.switch_step is None else whole(record.switch_step)
    return [
        *(result.group.label, result.label, percent(result.budget), str(record.cell.seed), record.id),
        f"{100 * linear(record):.1f}" + (f" {UNLEARNED}" if learned(record) is False else ""),
        f"{100 * knn(record):.1f}",
        whole(record.ledger.steps),
        _tera(record.ledger.flops_with_targets),
        *(NONE if each is None else number(each) for each in seconds),
        switched if result.arm.rela else "",
    ]
