"""The report as Markdown, its first table as LaTeX, and the short text for the terminal."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.grid import protocol_of
from bench.report.claims import claim_sentences, rooms, verdict_table
from bench.report.collect import (
    TOLERANCE,
    Collected,
    Result,
    clock_gap,
    knn,
    ledger_of,
    linear,
    reason,
    score_of,
)
from bench.report.tables import (
    DAGGER,
    NONE,
    Table,
    accuracy_table,
    cost_table,
    escape_latex,
    escape_markdown,
    gain_table,
    one_line,
    percent,
    published_table,
    spread_table,
    to_latex,
    to_markdown,
    to_text,
)
from bench.store import Record

PLOT_TITLES = {
    "accuracy_vs_steps": "Linear accuracy against training steps",
    "accuracy_vs_flops": "Linear accuracy against FLOP, those of making the targets included",
    "accuracy_vs_epochs": "Linear accuracy while training, at each arm's largest budget",
}


def markdown_document(found: Collected, plots: Sequence[str]) -> str:
    """Return the report."""
    grid = found.grid
    done = found.cells_done
    blocks = [
        f"# {escape_markdown(grid.title or grid.name)}",
        f"Grid `{grid.name}`: {done} of {len(found.planned)} planned cells done.",
        *_verdicts(found),
        *_settings(found),
        "## Linear accuracy",
        *_accuracy(found, linear, _linear_caption(found)),
        *(f"![{PLOT_TITLES[name]}]({name}.png)" for name in plots),
        "## Gain over the plain method",
        *_gains(found),
        *_published(found),
        "## kNN accuracy",
        *_accuracy(found, knn, _knn_caption(found)),
        "## What it cost",
        *_costs(found),
        "## Spreads, kept apart",
        *_spreads(found),
        "## What is not in the numbers",
        *_absent(found),
        "## Where the numbers come from",
        _bullets(_provenance(found)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def latex_document(found: Collected) -> str:
    """Return a tabular of linear accuracies for each method."""
    parts = ["% \\usepackage{booktabs}"]
    for family in found.families:
        table = accuracy_table(found, family, linear)
        notes = [f"Linear accuracy in % of the test images, grid {found.grid.name}, method {family.name}."]
        notes += [*_settings_lines(found), _linear_caption(found), *_marks(table, family.name)]
        parts.append("\n".join([*(f"% {escape_latex(note)}" for note in notes), to_latex(table)]))
    return "\n\n".join(parts) + "\n"


def terminal_text(found: Collected, files: Sequence[Path]) -> str:
    """Return the accuracies, what is absent, and where the files are."""
    parts = [f"{found.grid.name}: {found.cells_done} of {len(found.planned)} cells done"]
    parts.append(
        "Linear accuracy in % of the test images: mean"
        + (" ± standard deviation" if _several(found) else "")
        + " over n seeds; * is the full budget"
    )
    for family in found.families:
        table = accuracy_table(found, family, linear)
        parts.append("\n".join([to_text(table), *([_FEWER] if table.uses(DAGGER) else [])]))
    absent = [line for _, lines in _absences(found) for line in lines]
    if absent:
        parts.append("\n".join(map(one_line, absent)))
    parts.append("\n".join(["wrote", *(f"  {path}" for path in files)]))
    return "\n\n".join(parts)


_FEWER = f"{DAGGER} fewer seeds than planned."


def _settings(found: Collected) -> list[str]:
    return [_bullets(map(escape_markdown, _settings_lines(found)))]


def _settings_lines(found: Collected) -> list[str]:
    grid = found.grid
    lines = []
    for dataset in grid.datasets:
        titles = ", ".join(group.label for group in found.groups if group.dataset == dataset.name)
        images = f"{dataset.train_images:,} training images" if dataset.train_images else "all training images"
        protocol = protocol_of(grid, dataset)
        lines.append(
            f"{titles}: {images}, backbone {dataset.backbone or grid.backbone}, {protocol.epochs} epochs (each over the"
            f" budget's share of the images), batch {protocol.batch_size}, {protocol.precision},"
            f" {_count(len(grid.seeds), 'seed')} planned."
        )
    return lines


def _linear_caption(found: Collected) -> str:
    epochs = sorted({len(score_of(record).linear) for record in found.done})
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
        return "No cell is done yet."
    text = "Means over n training seeds"
    if _several(found):
        text += "; ± is the sample standard deviation over them (ddof 1)"
    if any(len(result.done) == 1 for result in found.results):
        text += "; one seed (n=1) has no spread, and a difference between single seeds may be chance"
    return text + "."


def _several(found: Collected) -> bool:
    return any(len(result.done) > 1 for result in found.results)


def _accuracy(found: Collected, value: Callable[[Record], float], caption: str) -> Iterable[str]:
    yield escape_markdown(caption)
    for family in found.families:
        if len(found.families) > 1:
            yield f"### {escape_markdown(family.name)}"
        table = accuracy_table(found, family, value)
        yield to_markdown(table)
        yield escape_markdown(" ".join(_marks(table, family.name)))


def _verdicts(found: Collected) -> Iterable[str]:
    if not found.grid.claims:
        return
    yield "## Verdicts"
    yield _bullets(map(escape_markdown, claim_sentences(found)))
    yield (
        "Reproduced: the lower bound of the accuracy's difference is above the margin and the cost is within the share."
        " Not reproduced: the upper bound is below the margin, or the cost is above the share. Differences are points,"
        " paired by seed, with one-sided bounds by Student's t over n pairs. In brackets the cost as a share of the"
        " baseline's, a geometric mean over pairs; steps, images and FLOP are counted and have no spread to allow for."
        " Seeds: how many would decide what is inconclusive, if mean and spread stayed as they are. Ledgers: training"
        " alone; with making the targets, charged in full to each cell; with the prior's own training, shared by the"
        " cells that use it."
    )
    yield to_markdown(verdict_table(found))
    yield _bullets(map(escape_markdown, rooms(found)))


def _gains(found: Collected) -> Iterable[str]:
    yield (
        "Linear accuracy in percentage points above the plain method at the same budget, and above it at the full one:"
        " mean of the differences between equal seeds ± their sample standard deviation (ddof 1), n pairs."
    )
    yield to_markdown(gain_table(found))


def _published(found: Collected) -> Iterable[str]:
    if found.grid.published:
        yield "## Beside what the paper reports"
        yield (
            "Linear accuracy in % after as many epochs. Ours: mean ± sample standard deviation (ddof 1) over n seeds."
            " Published: as the source in the last column has it; its n and spread are not known."
        )
        yield to_markdown(published_table(found))


def _marks(table: Table, name: str) -> list[str]:
    entries = [entry for row in table.rows for entry in row]
    marks = [f"{name}* is {name} at the full budget, repeated in each row."]
    if any(entry.bold for entry in entries):
        marks.append("Bold: the best at that budget.")
    if any(entry.underline for entry in entries):
        marks.append(f"Underlined: better than {name}*.")
    if any(entry.bold or entry.underline for entry in entries):
        marks.append("Means are compared before rounding.")
    if any(entry.text == NONE for entry in entries):
        marks.append(f"{NONE}: no result.")
    if table.uses(DAGGER):
        marks.append(_FEWER)
    return marks


def _costs(found: Collected) -> Iterable[str]:
    if not found.done:
        yield "No cell is done yet."
        return
    yield (
        "Means over the n seeds. TFLOP: 10^12 floating-point operations, 2 per multiply-add. Each cell is charged for"
        " making its targets in full, even where they were cached; the wall time is what the cell itself took, without"
        " targets that were cached. The share is that of the targets in the TFLOP of training and targets together."
        " The prior's own training is not counted."
    )
    for text in sorted({ledger_of(record).flops_not_counted for record in found.done} - {""}):
        yield escape_markdown(f"FLOP: {text}.".replace("..", "."))
    for group in found.groups:
        table = cost_table(found, group)
        if table.rows:
            yield f"### {escape_markdown(group.label)}"
            yield to_markdown(table)
    gaps = [(result, record, gap) for result in found.results for record in result.done if (gap := clock_gap(record))]
    if gaps:
        yield f"In these cells the phases do not add up to the wall time within {percent(TOLERANCE)}:"
        yield _bullets(
            escape_markdown(f"{_cell(result, record)} ({record.id}): the phases are {_gap(gap)} the wall time")
            for result, record, gap in gaps
        )
    wrapped = [record for record in found.done if record.cell.rela]
    if wrapped and all(record.switch_step is None for record in wrapped):
        yield (
            "ReLA never switched: its cells were trained on the ReLA loss to the end, and never on the loss of the"
            " method that they wrap."
        )


def _gap(gap: float) -> str:
    return f"{abs(gap):.1%} {'more' if gap > 0 else 'less'} than"


def _spreads(found: Collected) -> Iterable[str]:
    if not found.done:
        yield "No cell is done yet."
        return
    yield (
        "Standard deviations (ddof 1) of linear accuracy in percentage points: over the last epochs of a probe (the"
        " paper's ±) and over probes of other seeds on the same features, both as means over training seeds; and over"
        " training seeds (the ± in the tables above)."
    )
    yield to_markdown(spread_table(found))


def _absent(found: Collected) -> Iterable[str]:
    absences = _absences(found)
    if not absences:
        yield f"Nothing: all {len(found.planned)} planned cells are done, and every record was used."
    for title, lines in absences:
        yield f"### {title}"
        yield _bullets(map(escape_markdown, lines))


def _absences(found: Collected) -> list[tuple[str, list[str]]]:
    """Return what is not in the numbers, by kind, and why."""
    budgets: dict[tuple[str, str], list[str]] = defaultdict(list)
    for result in found.results:
        if result.missing:
            seeds = f"{'seed' if len(result.missing) == 1 else 'seeds'} {', '.join(map(str, result.missing))}"
            budgets[f"{result.group.label}, {result.label}", seeds].append(percent(result.budget))
    missing = [f"missing: {arm} at {', '.join(shares)}: {seeds}" for (arm, seeds), shares in budgets.items()]
    failed = [
        f"{record.status}: {_cell(result, record)}: {reason(record)}"
        for result in found.results
        for record in result.failed
    ]
    damaged = [f"damaged: {one.path.name}: {one.reason}" for one in found.damaged]
    other = [f"left out: {_count(found.left_out, 'record')} made with settings that the grid does not have"]
    other = other if found.left_out else []
    other += [
        f"left out: record {record.id} ({record.dataset_title}, {record.cell.arm} at {percent(record.cell.budget)},"
        f" seed {record.cell.seed}): there is a newer one, or one of a newer method or prior"
        for record in found.replaced
    ]
    kinds = [("Missing", missing), ("Failed", failed), ("Damaged files", damaged), ("Records left out", other)]
    return [(title, lines) for title, lines in kinds if lines]


def _cell(result: Result, record: Record) -> str:
    return f"{result.group.label}, {result.label} at {percent(result.budget)}, seed {record.cell.seed}"


def _provenance(found: Collected) -> Iterable[str]:
    """Yield a line for each fact about the finished records' origin, with the counts where they differ."""
    records = found.done or [record for result in found.results for record in result.failed]
    facts: dict[str, Callable[[Record], Any]] = {
        "Code": lambda record: _code(record.provenance.get("code")),
        "Device": lambda record: record.provenance.get("device"),
        "GPU": lambda record: record.provenance.get("gpu"),
        "CPU": lambda record: record.provenance.get("cpu"),
        "CPU threads": lambda record: record.provenance.get("threads"),
        "Platform": lambda record: record.provenance.get("platform"),
        "Python": lambda record: record.provenance.get("python"),
        "CUDA": lambda record: record.provenance.get("cuda"),
    }
    packages = [record.provenance.get("packages") for record in records]
    for name in sorted({name for each in packages if isinstance(each, dict) for name in each}):
        facts[name] = lambda record, name=name: (record.provenance.get("packages") or {}).get(name)  # type: ignore[misc]
    for method in sorted({record.cell.method for record in records}):
        facts[f"Version of method {method}"] = lambda record, method=method: (  # type: ignore[misc]
            record.inputs.method_version if record.cell.method == method else None
        )
    for group in found.groups:
        if group.data:
            yield escape_markdown(f"Data digest of {group.label}: {group.data}")
    for name, fact in facts.items():
        counts = Counter(_plain(value) for record in records if (value := fact(record)) is not None)
        if len(counts) == 1:
            yield escape_markdown(f"{name}: {next(iter(counts))}")
        elif counts:
            values = "; ".join(f"{value} ({_count(count, 'record')})" for value, count in sorted(counts.items()))
            yield f"**Mixed:** {escape_markdown(f'{name}: {values}')}"
    times = sorted(_plain(time) for record in records if (time := record.provenance.get("time")))
    if times:
        yield escape_markdown(f"Made: {times[0]}" + (f" to {times[-1]}" if times[0] != times[-1] else ""))


def _code(code: Any) -> str | None:
    if not isinstance(code, dict):
        return None
    commit = f"commit {code['commit']}" if code.get("commit") else "not from a git checkout"
    return f"{code.get('version')}, {commit}" + (", with uncommitted changes" if code.get("dirty") else "")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
