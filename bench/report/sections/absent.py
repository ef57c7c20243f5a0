"""What is not in the numbers, and why."""

from collections import defaultdict
from collections.abc import Iterator

from bench.report.blocks import Block, Bullets, Heading, Paragraph
from bench.report.collect import Collected
from bench.report.labels import percent
from bench.report.tables import counted, one_line


def absences(found: Collected) -> list[tuple[str, list[str]]]:
    """Return what is not in the numbers, by kind, and why."""
    budgets: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for result in found.results:
        reasons: dict[str, list[int]] = defaultdict(list)
        for seed in result.missing:
            reasons[found.why_skipped(result, seed) or ""].append(seed)
        for why, there in reasons.items():
            seeds = f"{'seed' if len(there) == 1 else 'seeds'} {', '.join(map(str, there))}"
            budgets[f"{result.group.label}, {result.label}", seeds, why].append(percent(result.budget))
    missing, skipped = (
        [
            f"{word}: {arm} at {', '.join(shares)}: {seeds}{f': {why}' if why else ''}"
            for (arm, seeds, why), shares in budgets.items()
            if bool(why) == (word == "skipped")
        ]
        for word in ("missing", "skipped")
    )
    failed = [
        f"{record.status}: {result.name}, seed {record.cell.seed}: {record.error}"
        for result in found.results
        for record in result.failed
    ]
    tuned = [(result, result.trials) for result in found.results if result.trials]
    missing += [f"missing: {result.name}: {counted(t.missing, 'trial')}" for result, t in tuned if t.missing]
    failed += [f"{one.status}: {result.name}, {one.cell.arm}: {one.error}" for result, t in tuned for one in t.failed]
    damaged = [f"damaged: {one.path.name}: {one.reason}" for one in found.damaged]
    other = [f"left out: {counted(found.left_out, 'record')} made with settings that the grid does not have"]
    other = other if found.left_out else []
    other += [
        f"left out: record {record.id} ({record.dataset_title}, {record.cell.arm} at {percent(record.cell.budget)},"
        f" seed {record.cell.seed}): there is a newer one, or one of a newer method or prior"
        for record in found.replaced
    ]
    kinds = [("Missing", missing), ("Failed", failed), ("Skipped", skipped), ("Damaged files", damaged)]
    kinds += [("Records left out", other)]
    return [(title, lines) for title, lines in kinds if lines]


def section(found: Collected) -> Iterator[Block]:
    """Yield what is missing, failed, skipped, damaged or left out."""
    yield Heading("What is not in the numbers")
    there = absences(found)
    if not there:
        yield Paragraph(f"Nothing: all {len(found.planned)} planned cells are done, and every record was used.")
    for title, lines in there:
        yield Heading(title, 3)
        yield Bullets(tuple(map(one_line, lines)))
