"""The verdicts on the grid's claims, in words and in every way of counting the cost."""

import statistics
from collections import Counter
from collections.abc import Iterator

from bench.core.stats import APART
from bench.grid.cell import arm_name
from bench.grid.claims import Statement, statements
from bench.report.blocks import Block, Bullets, Heading, Paragraph, Strong, TableBlock
from bench.report.claims import VERDICTS, Bounds, Judgement, judged, sides
from bench.report.collect import Collected, pairs
from bench.report.costs import FLOP, LEDGERS, PRIOR, TARGETS
from bench.report.labels import percent
from bench.report.sections.accuracy import NOT_LEARNED, cost_figure, stale_notes
from bench.report.sections.costs import not_alone
from bench.report.tables import NONE, Entry, Table, counted, entries, number, one_line


def section(found: Collected) -> Iterator[Block]:
    """Yield the claims with their verdicts, where the grid has claims."""
    claims = judged(found)
    if not claims:
        return
    yield Heading("Verdicts")
    yield Paragraph((Strong(headline(found, claims)),))
    yield from cost_figure(found)
    yield TableBlock("verdicts", verdict_table(claims))
    yield Bullets(tuple(one_line(_in_words(found, judgements[0]), None) for judgements in claims))
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
    yield from map(Paragraph, stale_notes(found.results))
    yield from not_alone(found)
    yield Bullets(tuple(map(one_line, rooms(found, claims))))


def _baselines(found: Collected) -> str:
    """Return what to say of baselines that learned nothing, or of which nobody knows."""
    names = {name for claim in statements(found.grid) for name in claim.best_of or (claim.baseline,)}
    those = [result for result in found.results if result.done and arm_name(result.arm) in names]
    bad = [result.name for result in those if result.learned is False]
    unknown = sum(result.learned is None for result in those)
    lines = [f"{NOT_LEARNED} Here: {'; '.join(bad)}."] if bad else []
    if unknown:
        lines.append(f"Whether the baselines learned anything was not measured for {unknown} of {len(those)} of them.")
    return one_line(" ".join(lines), None)


def headline(found: Collected, claims: list[list[Judgement]]) -> str:
    """Return the answer, by FLOP with targets: first against the best tuned arm, where a claim's baseline is that."""
    of_cost = [one for each in claims for one in each if (one.currency, one.ledger) == (FLOP, TARGETS)]
    if not of_cost:
        return f"Claims: {_counts([each[0] for each in claims])}."
    against_best = [one for one in of_cost if one.claim.best_of]
    others = [one for one in of_cost if not one.claim.best_of]
    if not against_best:
        return _answer(found, others)
    said = f"Against the best tuned arm without ReLA: {_answer(found, against_best)}"
    return f"{said} Against an arm that was not tuned: {_answer(found, others)}" if others else said


def _answer(found: Collected, claims: list[Judgement]) -> str:
    """Return the lowest cost at which a claim about ReLA holds, or that there is none, and which controls hold too."""
    of_rela = {arm_name(arm) for arm in found.grid.arms if arm.rela and not arm.rela.shuffle}
    held = [(one.ratio[0], one) for one in claims if one.ratio and one.verdict == VERDICTS["yes"]]
    by_rela = [pair for pair in held if pair[1].claim.arm in of_rela]
    if by_rela:
        ratio, one = min(by_rela, key=lambda pair: pair[0])
        said = (
            f"{_side(one)} is no worse than {one.claim.baseline} at {percent(one.claim.baseline_budget)}:"
            f" {difference(one)} points, for {100 * ratio:.0f}% of its FLOP, targets included ({one.group.label},"
            f" n={one.n})."
        )
    else:
        whose = "by ReLA " if held else ""
        said = f"No claim of a lower cost {whose}is reproduced, by FLOP with targets: {_counts(claims)}."
    controls = [_side(one) for _, one in held if one.claim.arm not in of_rela]
    return said + (f" Of the controls, this is no worse too: {', '.join(controls)}." if controls else "")


def _side(one: Judgement) -> str:
    return f"{one.claim.arm} at {percent(one.claim.budget)} of the steps"


def _counts(claims: list[Judgement]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in Counter(one.verdict for one in claims).items())


def _in_words(found: Collected, one: Judgement) -> str:
    return f"{one.claim.name}, {one.group.label}: {claim_sentence(one.claim)} {_judged_by(found, one)}".rstrip()


def _judged_by(found: Collected, one: Judgement) -> str:
    """Return by which recipes a claim is judged, where the grid is tuned: of both sides, and of the evaluation."""
    those = [result for result in sides(found, one.claim, one.group) if result and result.done]
    if not found.grid.tune or not those:
        return ""
    recipes = [
        f"{result.label}: {result.trials.recipe(result.done[0])}" if result.trials else f"{result.label}: not tuned"
        for result in those
    ]
    probe = those[0].done[0].cell.protocol.probe.recipe
    return f"Recipes: {'; '.join(recipes)}. Evaluated by linear probe, recipe {probe}."


def verdict_table(claims: list[list[Judgement]]) -> Table:
    """Return the judgements of claims: a row for each ledger, a column for each currency, and one for the datasets."""
    currencies = list(dict.fromkeys(one.currency for judgements in claims for one in judgements))
    several = len({one.group for judgements in claims for one in judgements}) > 1
    names = ("Claim", *(["Dataset"] if several else []), "Ledger")
    head = (*names, "Accuracy, arm minus baseline", *(currency.value for currency in currencies), "n", "Seeds")
    rows = []
    for judgements in claims:
        for ledger in LEDGERS:
            there = {one.currency: one for one in judgements if one.ledger == ledger}
            if not there:
                continue
            first = next(iter(there.values()))
            seeds = [one.seeds for one in there.values() if one.verdict == VERDICTS["undecided"]]
            needed = "" if not seeds else NONE if None in seeds else str(max(s for s in seeds if s))
            ledger_named = ledger if first.claim.share is not None else ""
            name = (first.claim.name, *([first.group.label] if several else []), ledger_named)
            gain = Entry(difference(first), "" if first.apart is None else f"seed {first.apart} apart")
            verdicts = (_verdict(there[currency]) for currency in currencies)
            rows.append(entries(*name, gain, *verdicts, str(first.n), needed))
    return Table(head, tuple(rows), names=len(names))


def rooms(found: Collected, claims: list[list[Judgement]]) -> list[str]:
    """Return, for each claim that holds with targets, what a prior of unknown training may have cost for it to hold."""
    lines = []
    for judgements in claims:
        by = {(one.ledger, one.currency): one for one in judgements}
        with_targets, with_prior = by.get((TARGETS, FLOP)), by.get((PRIOR, FLOP))
        if not with_targets or not with_prior or with_prior.ratio or with_targets.verdict != VERDICTS["yes"]:
            continue
        claim = with_targets.claim
        paired = pairs(*sides(found, claim, with_targets.group))
        spent = [[found.costs.of(record, FLOP, TARGETS) or 0.0 for record in pair] for pair in paired]
        room = statistics.fmean((claim.share or 0.0) * baseline - arm for arm, baseline in spent)
        share = room / statistics.fmean(baseline for _, baseline in spent)
        lines.append(
            f"{claim.name}, {with_targets.group.label}: the training of the prior is not known. The claim holds while a"
            f" cell's part of it is at most {number(room / 1e12)} TFLOP, {100 * share:.2g}% of what the baseline took"
            f" (mean, n={len(paired)})."
        )
    return lines


def verdict_heading(claims: list[list[Judgement]]) -> str:
    """Return what the list of verdicts is about."""
    return f"{counted(len(claims), 'claim')}, judged together, by FLOP with targets where they speak of cost:"


def verdicts_in_words(claims: list[list[Judgement]]) -> list[tuple[str, str]]:
    """Return each verdict with the claims that have it, counted in FLOP."""
    names: dict[str, dict[str, list[str]]] = {}
    for judgements in claims:
        one = [each for each in judgements if each.currency is FLOP][:2][-1]  # with targets, where the claim is of cost
        claim, _, arm = one.claim.name.partition(": ")
        names.setdefault(one.verdict, {}).setdefault(claim, []).extend([arm] if arm else [])
    return [
        (verdict, "; ".join(claim + (f" ({', '.join(arms)})" if arms else "") for claim, arms in there.items()))
        for verdict, there in names.items()
    ]


def claim_sentence(claim: Statement) -> str:
    """Return what a claim says, in words."""
    points = abs(round(100 * claim.margin, 4))
    amount = f"{points:g} {'point' if points == 1 else 'points'} of linear accuracy"
    level = f"at most {amount} below" if claim.margin > 0 else f"at least {amount} above" if claim.margin else "above"
    cost = f", at no more than {percent(claim.share)} of its cost" if claim.share is not None else ""
    baseline = claim.baseline
    if claim.best_of:
        known = baseline in claim.best_of
        baseline = f"{baseline}, " * known + "the best tuned arm without ReLA" + ("," if known else " (not known yet)")
    return (
        f"{claim.arm} at {percent(claim.budget)} of the steps is {level} {baseline} at"
        f" {percent(claim.baseline_budget)}{cost}. Each bound has {percent(claim.confidence)} confidence."
    )


def certainty(claims: list[list[Judgement]]) -> str:
    """Return what the verdicts allow for, and what they do not."""
    confidence = min(one.claim.confidence for each in claims for one in each)
    errors = [one.error for each in claims for one in each if one.error]
    size = f", which add a standard error of up to {100 * max(errors):.1f} points," if errors else ""
    text = (
        f"The {counted(len(claims), 'claim')} of this grid are judged together, by Holm's method: in each way of"
        " counting the cost, the chance that any of them is wrongly called reproduced is at most"
        f" {percent(round(1 - confidence, 9))}, and so is that of any wrong 'not reproduced'. 'Alone' is what a claim"
        " would be called by itself; bounds are of the single claim. All of this is about training seeds alone: it says"
        f" nothing of other test images{size} nor of other training images."
    )
    if any(one.apart is not None for each in claims for one in each):
        text += (
            " 'Seed ... apart': the spread of the other seeds does not explain its difference (Grubbs' test at"
            f" {percent(APART)}), so that bounds which suppose normal differences say little."
        )
    return text


def difference(judgement: Judgement) -> str:
    """Return by how many points the arm is above its baseline, with bounds."""
    return _bounds(judgement.difference, "+.1f")


def _verdict(one: Judgement) -> Entry:
    decided = one.verdict in (VERDICTS["yes"], VERDICTS["no"])
    cost = "not known" if one.ratio is None else _bounds(one.ratio, ".1f", "%", exact=one.currency.exact)
    note = f"({cost})" if one.alone == one.verdict else f"({cost}; alone: {one.alone})"
    return Entry(one.verdict, note, decided, value=one.ratio and one.ratio[0]) if one.n else Entry(NONE)


def _bounds(values: Bounds | None, form: str, unit: str = "", exact: bool = False) -> str:
    if values is None:
        return NONE
    mean, low, high = (f"{100 * value:{form}}{unit}" for value in values)
    return mean if exact else f"{mean}; {low} to {high}" if unit else f"{mean} ({low} to {high})"
