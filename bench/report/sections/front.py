"""The ways to save under one ledger: what each takes with its targets, what is best at its cost, and ReLA's place."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.core.stats import ROUNDING, Answer, deviation, interval
from bench.grid.cell import Arm
from bench.report.blocks import Block, Bullets, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Group, Result, may_be_baseline, pairs
from bench.report.costs import FLOP, SECONDS, STEPS, TARGETS, Currency
from bench.report.facts import linear
from bench.report.figures.costs import front
from bench.report.labels import percent
from bench.report.sections.accuracy import accuracy_entry
from bench.report.tables import NONE, UNLEARNED, Entry, Table, counted, entries, number, one_line, whole

LEVEL = 0.975  # of each of the two bounds of a 95 % interval
UNITS = {FLOP: ("TFLOP", 1e12), SECONDS: ("Seconds", 1.0), STEPS: ("Steps", 1.0)}


def section(found: Collected) -> Iterator[Block]:
    """Yield the tables and ReLA's place, where an accelerator has no prior: those that distil one are controls."""
    if not found.done or not any(arm.accelerate and not arm.accelerate.prior for arm in found.grid.arms):
        return
    yield Heading("Ways to save, under one ledger")
    yield Paragraph(
        "Costs are those of training and of what is made for it: a prior's targets, a choice of images; mean over n"
        " seeds, ± sample standard deviation (ddof 1) where they differ. Of plain's: as a share of what the plain"
        " method takes at the same budget, and at its largest one (geometric mean of pairs). Above plain: points of"
        " linear accuracy above it at the same budget, the mean over n pairs of equal seeds. In brackets: 95% intervals"
        " over seeds (Student's t), but for FLOP and steps, which are counted. Front: among the means of all arms and"
        f" budgets, none is as cheap and as accurate, and better in one of the two. {NONE}: not measured, or not alone."
    )
    for index, group in enumerate(found.groups_done, start=1):
        yield Heading(group.label, 3)
        yield TableBlock(f"ways-{index}", ways_table(found, group))
        if places := list(rela_places(found, group)):
            yield Paragraph(certainty(max(n for n, _ in places)))
            yield Bullets(tuple(place for _, place in places))
        if (table := combined_table(found, group)).rows:
            yield Paragraph(
                "ReLA inside an accelerator, beside each of the two alone. Better than both: yes where it takes no more"
                " FLOP than either and both intervals are above 0; no where it takes more, or one of them is below 0."
            )
            yield TableBlock(f"combined-{index}", table)


def ways_table(found: Collected, group: Group) -> Table:
    """Return what each arm reaches and takes at each budget, beside its plain method, and where it is on the front."""
    currencies = [each for each in UNITS if each in found.costs.currencies]
    results, rows = found.finished(group), []
    fronts = {each: on for each in currencies if (on := on_front(found, results, each))}
    for family in found.families:
        largest = found.done_of(group, family.plain)[-1:] if family.plain else []
        for result in (r for arm in family.arms for r in found.done_of(group, arm)):
            plain = found.find(group, family.plain, result.budget)
            costs = []
            for each in currencies:
                shares = (_share(found, result, other, each) for other in (plain, *largest))
                costs += [_cost(found, result, each), *shares, *([] if largest else [NONE])]
            above = "" if result is plain else difference(result, plain)
            there = [each.value for each, on in fronts.items() if on[results.index(result)]]
            names = (result.label, percent(result.budget), accuracy_entry(result, linear))
            rows.append(entries(*names, above, *costs, ", ".join(there) or "no"))
    units = [UNITS[each][0] for each in currencies]
    heads = (head for unit in units for head in (unit, f"{unit}, of plain's", f"{unit}, of plain's largest"))
    front_of = f"Front of {', '.join(each.value for each in fronts)}"
    return Table(("Arm", "Budget", "Linear, %", "Above plain", *heads, front_of), tuple(rows), names=2)


def on_front(found: Collected, results: Sequence[Result], currency: Currency) -> list[bool]:
    """Tell of each result whether its mean is on the front of all; empty where a cost is not known of all of them."""
    costs = [_spent(found, result, currency) for result in results]
    if not all(costs):
        return []
    points = [(statistics.fmean(cost), result.mean(linear) or 0.0) for cost, result in zip(costs, results, strict=True)]
    best = front(points)
    return [point in best for point in points]


def difference(result: Result, baseline: Result | None) -> Entry:
    """Return by how many points a result is above a baseline: the mean over pairs, its 95 % interval and n."""
    if not may_be_baseline(baseline):
        return Entry(NONE, UNLEARNED)
    values = _differences(result, baseline)
    if not values:
        return Entry(NONE)
    bounds = interval(values, LEVEL)
    between = f"{100 * bounds.low:+.1f} to {100 * bounds.high:+.1f}; " if bounds else ""
    return Entry(f"{100 * statistics.fmean(values):+.1f}", f"({between}n={len(values)})")


def certainty(n: int) -> str:
    """Return what so many seeds can say of a rank: the chances hold for seeds that are alike, whatever their spread."""
    if n == 1:
        return "Of one seed, a rank and a place on the front have no range."
    inside, ordered = (f"{100 * chance:.3g}%" for chance in ((n - 1) / (n + 1), 2 ** (1 - n)))
    return (
        f"ReLA's place, and its range over single seeds, which is no 95% interval: with n = {n}, a further seed ranks"
        f" within it with a chance of at least {inside}, and of two equally good arms one is ahead in all {n} with a"
        f" chance of {ordered}. The 95% intervals suppose normal differences, which so few seeds cannot show."
    )


def rela_places(found: Collected, group: Group) -> Iterator[tuple[int, str]]:
    """Yield where each arm of ReLA ranks among the accelerated ones of its method, after the number of seeds."""
    everything = found.finished(group)
    singly = [_of(everything, [seed]) for seed in _common(everything)]
    fronts = {each: [one for results in singly if (one := on_front(found, results, each))] for each in UNITS}
    for family in found.families:
        arms = [arm for arm in family.others if _accelerated(arm)]
        for result in (r for arm in arms if not arm.accelerate for r in found.done_of(group, arm)):
            rivals = [r for arm in arms if (r := found.find(group, arm, result.budget)) and r.done]
            seeds = _common(rivals)
            if len(rivals) == 1 or not seeds:
                continue
            over, *alone = (_rank(_of(rivals, those), rivals.index(result)) for those in (seeds, *zip(seeds)))
            text = f"{result.label} at {percent(result.budget)}: rank {over} of {len(rivals)} accelerated arms by mean"
            text += f" accuracy ({min(alone)} to {max(alone)} over {counted(len(seeds), 'seed')})"
            for currency, there in fronts.items():
                on = sum(each[everything.index(result)] for each in there)
                text += f"; on the front of {currency.in_words} in {on} of {len(there)}" if there else ""
            yield len(seeds), one_line(f"{text}.")


def combined_table(found: Collected, group: Group) -> Table:
    """Return each arm with ReLA inside an accelerator beside the two alone, at each budget that all three have."""
    head = ("Arm", "Budget", "Beside", "Linear, %", "Alone, %", "Above", "TFLOP", "Alone, TFLOP", "Better than both")
    rows = []
    for arm in (arm for arm in found.grid.arms if arm.rela and arm.accelerate):
        alone = [_without(found, arm, key) for key in ("accelerate", "rela")]
        for result in found.done_of(group, arm):
            others = [r for each in alone if (r := found.find(group, each, result.budget)) and pairs(result, r)]
            for other in others if len(others) == 2 else ():
                accuracies = (accuracy_entry(each, linear) for each in (result, other))
                costs = (_cost(found, each, FLOP) for each in (result, other))
                names, above = (result.label, percent(result.budget), other.label), difference(result, other)
                rows.append(entries(*names, *accuracies, above, *costs, _better(found, result, others)))
    return Table(head, tuple(rows), names=3)


def _better(found: Collected, result: Result, others: Sequence[Result]) -> Answer:
    """Tell whether a result is above all others and takes no more FLOP than any of them."""
    bounds = [interval(_differences(result, other), LEVEL) for other in others]
    answers = [each.above(0.0) if each else "undecided" for each in bounds]
    logs = (found.costs.log_ratios(pairs(result, other), FLOP, TARGETS) for other in others)
    dearer = any(statistics.fmean(log or 0.0 for log in each) > ROUNDING for each in logs)
    return "no" if dearer or "no" in answers else "yes" if set(answers) == {"yes"} else "undecided"


def _accelerated(arm: Arm) -> bool:
    """Return whether an arm has a way to save around its method, and is no control."""
    return bool(arm.wrappers) and not arm.warm_start and not any(each.shuffle for each in arm.wrappers.values())


def _without(found: Collected, arm: Arm, key: str) -> Arm | None:
    """Return the arm that lacks one of an arm's two wrappers, and has its recipe if there is such a one."""
    bare: dict[str, object] = {"name": None, "budgets": None, "recipe": {}}
    wanted = arm.model_copy(update={key: None, **bare})
    there = [each for each in found.grid.arms if each.model_copy(update=bare) == wanted]
    return min(there, key=lambda each: each.recipe != arm.recipe, default=None)


def _of(results: Sequence[Result], seeds: Sequence[int]) -> list[Result]:
    """Return results with some of their seeds alone."""
    return [replace(each, done=tuple(one for one in each.done if one.cell.seed in seeds)) for each in results]


def _common(results: Sequence[Result]) -> list[int]:
    """Return the seeds that are finished in all of the results."""
    return sorted(set.intersection(*({one.cell.seed for one in each.done} for each in results)))


def _rank(results: Sequence[Result], index: int) -> int:
    """Return the place of one of some results by mean accuracy: 1 is the best, and equals share the better one."""
    means = [each.mean(linear) or 0.0 for each in results]
    return 1 + sum(mean > means[index] for mean in means)


def _differences(result: Result, baseline: Result | None) -> list[float]:
    return [linear(one) - linear(other) for one, other in pairs(result, baseline)]


def _spent(found: Collected, result: Result, currency: Currency) -> list[float]:
    """Return what each seed took with its targets; nothing where that is not known of all of them."""
    costs = [found.costs.of(record, currency, TARGETS) for record in result.done]
    known = [cost for cost in costs if cost is not None]
    return known if len(known) == len(costs) else []


def _cost(found: Collected, result: Result, currency: Currency) -> str:
    spent = [cost / UNITS[currency][1] for cost in _spent(found, result, currency)]
    if not spent:
        return NONE
    form = whole if currency is STEPS else number
    spread = f" ± {number(deviation(spent))}" if len(set(spent)) > 1 else ""
    return f"{form(statistics.fmean(spent))}{spread}"


def _share(found: Collected, result: Result, baseline: Result | None, currency: Currency) -> str:
    """Return what a result takes as a share of a baseline: the geometric mean over pairs, with its 95 % interval."""
    if result is baseline:
        return ""
    ratios = found.costs.log_ratios(pairs(result, baseline), currency, TARGETS)
    known = [ratio for ratio in ratios if ratio is not None]
    if not known or len(known) < len(ratios):
        return NONE
    mean, bounds = f"{100 * math.exp(statistics.fmean(known)):.1f}%", interval(known, LEVEL)
    if currency.exact or bounds is None:
        return mean
    return f"{mean} ({100 * math.exp(bounds.low):.1f} to {100 * math.exp(bounds.high):.1f}%)"
