"""Tables as plain data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.grid.schema import arm_name
from bench.report.collect import Collected, Group, Result, curve_of, may_be_baseline, pairs
from bench.report.costs import ALONE, FLOP, JOULES, PRIOR, TARGETS
from bench.report.facts import (
    Summary,
    knn,
    learned,
    linear,
    phase_seconds,
    probe_sd,
    probe_seed_sd,
    summarise,
    target_flops,
    total_flops,
    wall_seconds,
)
from bench.report.labels import Family, arm_labels, percent
from bench.store.record import Finished

NONE = "—"  # not planned, or not measured
DAGGER = "†"  # fewer seeds than planned
UNLEARNED = "‡"  # a seed that learned nothing


@dataclass(frozen=True)
class Entry:
    """A cell of a table: `text` carries the emphasis, `note` follows it plainly.

    Rows are sorted by `value` where the number that the text begins with does not do: in another unit, say.
    """

    text: str
    note: str = ""
    bold: bool = False
    underline: bool = False
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Column heads and rows; the first `names` columns are names, aligned to the left, the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    names: int

    def uses(self, mark: str) -> bool:
        """Return whether a mark stands in some note."""
        return any(mark in entry.note for row in self.rows for entry in row)


def accuracy_table(
    found: Collected,
    family: Family,
    value: Callable[[Finished], float],
    beside: Callable[[Finished], float | None] = lambda record: None,
) -> Table:
    """Return the accuracies of a method in the shape of the paper's Table 1.

    Rows: datasets x budgets. Columns: the method, its ReLA arms, and the method at the full budget (the star). Bold:
    the best of at least two in a row, the star aside; underlined: better than the star. Compared before rounding.
    `beside`: an accuracy by Adam, which decides nothing.
    """
    headers = arm_labels(family.others, short=True)
    arms = [family.plain, *family.others]
    head = ("Dataset", "Budget", family.name, *(headers[arm_name(arm)] for arm in family.others), f"{family.name}*")
    rows = []
    for group in found.groups:
        full = found.find(group, family.plain, 1.0)
        star = _summary(full, value)
        for budget in _budgets(found, family):
            results = [found.find(group, arm, budget) for arm in arms]
            summaries = [_summary(result, value) for result in results]
            means = [summary.mean for summary in summaries if summary]
            entries = [
                _accuracy(
                    result,
                    summary,
                    beside,
                    best=summary is not None and len(means) > 1 and summary.mean == max(means),
                    beats=summary is not None and star is not None and summary.mean > star.mean,
                )
                for result, summary in zip(results, summaries, strict=True)
            ]
            rows.append((Entry(group.label), Entry(percent(budget)), *entries, _accuracy(full, star, beside)))
    return Table(head, tuple(rows), names=2)


def gain_table(found: Collected) -> Table:
    """Return what ReLA and the controls gain over the plain method, in points of linear accuracy, paired by seed."""
    head = ("Dataset", "Method", "Arm", "Budget", "Plain", "Arm's", "Gain", "Gain over full budget")
    rows = []
    for group in found.groups:
        for family in found.families:
            full = found.find(group, family.plain, 1.0)
            labels = arm_labels(family.others, short=True)
            for arm in family.others:
                for budget in arm.budgets or found.grid.budgets:
                    plain, result = found.find(group, family.plain, budget), found.find(group, arm, budget)
                    if result is None:
                        continue
                    rows.append(
                        (
                            *map(Entry, (group.label, family.name, labels[arm_name(arm)], percent(budget))),
                            _accuracy(plain, _summary(plain, linear)),
                            _accuracy(result, _summary(result, linear)),
                            _gain(result, plain),
                            _gain(result, full),
                        )
                    )
    return Table(head, tuple(rows), names=4)


def published_table(found: Collected) -> Table:
    """Return the accuracies that the paper reports beside ours after the same number of epochs."""
    head = ("Dataset", "Arm", "Epoch", "Ours", "Published", "Source")
    rows = []
    for group in found.groups:
        for point in found.grid.published:
            arm = next(arm for arm in found.grid.arms if arm_name(arm) == point.arm)
            result = found.find(group, arm, 1.0)
            ours = curve_of(result).get(float(point.epoch)) if result else None
            entry = Entry(plus_minus(ours, ".1f"), f"(n={ours.n})") if ours else Entry(NONE)
            names = (Entry(group.label), Entry(point.arm), Entry(str(point.epoch)))
            rows.append((*names, entry, Entry(f"{100 * point.linear:.0f}"), Entry(point.source)))
    return Table(head, tuple(rows), names=2)


def _gain(result: Result | None, baseline: Result | None) -> Entry:
    """Return by how much a result exceeds its baseline: mean and deviation of the differences of equal seeds.

    Nothing exceeds a baseline that learned nothing.
    """
    if not may_be_baseline(baseline):
        return Entry(NONE, UNLEARNED)
    gain = summarise(linear(one) - linear(other) for one, other in pairs(result, baseline))
    return Entry(plus_minus(gain, "+.1f", 100), f"(n={gain.n})") if gain else Entry(NONE)


def plus_minus(summary: Summary, form: str, scale: float = 1) -> str:
    """Return mean ± sample standard deviation, in units of 1 / scale; the mean alone of one value."""
    spread = "" if summary.sd is None else f" ± {scale * summary.sd:{form.lstrip('+')}}"
    return f"{scale * summary.mean:{form}}{spread}"


def cost_table(found: Collected, group: Group) -> Table:
    """Return what the arms spent on a group's data: means over the seeds."""
    costs = found.costs
    joules = {"Train J": ALONE, "Targets J": TARGETS} if costs.measured(JOULES) else {}
    head = (
        "Arm",
        "Budget",
        "n",
        "Steps",
        "Images",
        "Train TFLOP",
        "Targets TFLOP",
        "Prior's TFLOP",
        "Targets, share",
        "Train s",
        "Targets s",
        "Eval s",
        "Other s",
        "Wall s",
        *joules,
        "Peak MiB",
        "ReLA switched",
    )
    rows = []
    for result in found.results:
        if result.group != group or not result.done:
            continue
        share = _summary(result, lambda record: target_flops(record) / (total_flops(record) or 1))
        texts = [
            result.label,
            percent(result.budget),
            str(len(result.done)),
            _mean(result, lambda record: record.ledger.steps, whole),
            _mean(result, lambda record: record.ledger.images, whole),
            _mean(result, lambda record: record.ledger.flops / 1e12),
            _mean(result, lambda record: target_flops(record) / 1e12),
            _mean(result, lambda record: _tera(costs.part(record, FLOP, PRIOR))),
            f"{number(100 * share.mean)}%" if share else NONE,
            *(_mean(result, partial(phase_seconds, phase=phase)) for phase in ("train", "targets", "eval", "other")),
            _mean(result, wall_seconds),
            *(_mean(result, partial(costs.part, currency=JOULES, ledger=ledger)) for ledger in joules.values()),
            _mean(result, _peak_mib, whole),
            _switch(result),
        ]
        rows.append(tuple(Entry(text) for text in texts))
    return Table(head, tuple(rows), names=2)


def run_table(found: Collected) -> Table:
    """Return a row for each finished record."""
    names = ("Dataset", "Arm", "Budget", "Seed", "Cell")
    costs = ("Steps", "TFLOP with targets", "Train s", "Targets s", "ReLA switched at step")
    rows = []
    for result in found.results:
        for record in result.done:
            texts = [
                *(result.group.label, result.label, percent(result.budget), str(record.cell.seed), record.id),
                f"{100 * linear(record):.1f}" + f" {UNLEARNED}" * (learned(record) is False),
                f"{100 * knn(record):.1f}",
                whole(record.ledger.steps),
                number(total_flops(record) / 1e12),
                *(_measured(phase_seconds(record, phase)) for phase in ("train", "targets")),
                "" if not result.arm.rela else "never" if record.switch_step is None else whole(record.switch_step),
            ]
            rows.append(tuple(map(Entry, texts)))
    return Table((*names, "Linear, %", "kNN, %", *costs), tuple(rows), names=len(names))


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
        texts = [
            result.group.label,
            result.label + f" {UNLEARNED}" * (result.learned is False),
            percent(result.budget),
            f"{100 * within.mean:.2f}" if within else NONE,
            "n=" + " or ".join(map(str, epochs)),
            f"{100 * probes.mean:.2f}" if probes else NONE,
            "n=" + " or ".join(map(str, counts)),
            f"{100 * over.sd:.2f}" if over and over.sd is not None else NONE,
            f"n={len(result.done)}",
        ]
        rows.append(tuple(Entry(text) for text in texts))
    return Table(head, tuple(rows), names=3)


def number(value: float) -> str:
    """Return a quantity with two or three significant digits, the whole part in full."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:#.2g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def whole(value: float) -> str:
    """Return a count."""
    return f"{value:,.0f}"


def one_line(text: str, limit: int | None = 400) -> str:
    """Return text without line breaks and control characters, cut where it is too long for a report."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if limit is None or len(text) <= limit else f"{text[: limit - 1]}…"


def _budgets(found: Collected, family: Family) -> Sequence[float]:
    """Return the budgets below the full one; the full one too where ReLA has it, or where there is no other."""
    arms = [arm for arm in (family.plain, *family.others) if arm]
    budgets = {budget for arm in arms for budget in arm.budgets or found.grid.budgets}
    full = any(1.0 in (arm.budgets or found.grid.budgets) for arm in family.others)
    return sorted(budgets if full else budgets - {1.0} or budgets)


def _summary(result: Result | None, value: Callable[[Finished], float]) -> Summary | None:
    return result.over_seeds(value) if result else None


def _accuracy(
    result: Result | None,
    summary: Summary | None,
    beside: Callable[[Finished], float | None] = lambda record: None,
    best: bool = False,
    beats: bool = False,
) -> Entry:
    if not result or not summary:
        return Entry(NONE)
    other = result.over_seeds(beside)
    by_adam = f"; by Adam {plus_minus(other, '.1f', 100)}" if other else ""
    note = f"(n={summary.n}{by_adam})" + DAGGER * (summary.n < len(result.seeds))
    note += UNLEARNED * (result.learned is False)
    return Entry(plus_minus(summary, ".1f", 100), note, bold=best, underline=beats)


def _mean(result: Result, value: Callable[[Finished], float | None], form: Callable[[float], str] = number) -> str:
    """Return the mean over the seeds, with n where it is not that of all finished ones."""
    summary = result.over_seeds(value)
    if summary is None:
        return NONE
    return form(summary.mean) + (f" (n={summary.n})" if summary.n < len(result.done) else "")


def _tera(value: float | None) -> float | None:
    return None if value is None else value / 1e12


def _measured(value: float | None) -> str:
    return NONE if value is None else number(value)


def _peak_mib(record: Finished) -> float | None:
    peak = record.ledger.peak_memory_bytes
    return None if peak is None else peak / 2**20


def _switch(result: Result) -> str:
    """Return at which step ReLA handed over to the method, in all seeds."""
    if not result.arm.rela:
        return ""
    steps = [record.switch_step for record in result.done if record.switch_step is not None]
    if not steps:
        return f"not in {max(record.ledger.steps for record in result.done):,} steps"
    text = f"at {min(steps):,}" + (f" to {max(steps):,}" if min(steps) < max(steps) else "")
    return text if len(steps) == len(result.done) else f"{text} ({len(steps)} of {len(result.done)} seeds)"
