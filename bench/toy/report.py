"""The report of a two-Gaussian study (`bench.toy.study`): reads records only and trains nothing."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import NotMadeError
from bench.report.facts import summarise
from bench.report.markdown import escape_markdown, to_markdown
from bench.report.plots import COLOURS, MARKERS, draw_files, write_files
from bench.report.tables import NONE, Entry, Table, one_line, plus_minus
from bench.report.terminal import to_text
from bench.store.record import Damaged, record_files
from bench.toy.study import Setting, ToyGrid, ToyRecord, read_toy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGMA, RHO = "\N{GREEK CAPITAL LETTER SIGMA}", "\N{GREEK SMALL LETTER RHO}"
# With colour and marker, so that lines can be told apart in grey and by colour-blind people.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))


def write_toy_report(grid: ToyGrid, records: Path, out: Path) -> str:
    """Write table and plot to the folder `out` and return a short text for the terminal.

    Raises UserError when there is no record of the study.
    """
    read = [read_toy(path) for path in record_files(records)]
    planned = grid.settings
    found = {record.setting: record for record in read if isinstance(record, ToyRecord) and record.setting in planned}
    absent = [f"missing: {setting}: no record" for setting in planned if setting not in found]
    absent += [f"damaged: {one.path.name}: {one.reason}" for one in read if isinstance(one, Damaged)]
    absent += [f"left out: {one.id}: made with settings that the grid does not have" for one in _others(read, found)]
    if not found:
        others = "".join(f"; {line}" for line in absent if not line.startswith("missing"))
        raise NotMadeError(f"{records}: no record of {grid.name}{others}", "run")
    table = toy_table(grid, found)
    files = {"report.md": _document(grid, found, table, absent).encode(), **draw_curves(grid, found)}
    write_files(files, out, ["curves"])
    return "\n\n".join(
        [
            f"{grid.name}: {len(found)} of {len(planned)} settings done",
            f"{_caption(grid)}\n{to_text(table)}",
            *(["\n".join(map(one_line, absent))] if absent else []),
            "\n".join(["wrote", *(f"  {out / name}" for name in files)]),
        ]
    )


def toy_table(grid: ToyGrid, found: dict[Setting, ToyRecord]) -> Table:
    """Return a row for each setting, those without a record too."""
    end = grid.toy.evaluate_at[-1]
    head = (
        "Training data",
        "n",
        f"Loss after {grid.early} steps",
        "minus unmodified",
        f"Steps to loss {grid.target_loss:g}",
        f"Loss after {end} steps",
        f"Accuracy after {end} steps, %",
    )
    base = found.get(grid.unmodified)
    rows = []
    for setting in grid.settings:
        record = found.get(setting)
        if record is None:
            texts = [NONE] * (len(head) - 1)
        else:
            early = record.at(record.loss, grid.early)
            pairs = zip(early, base.at(base.loss, grid.early), strict=True) if base else ()
            texts = [
                str(len(setting.seeds)),
                _spread(early, ".3f"),
                _spread([one - other for one, other in pairs], "+.3f") if setting != grid.unmodified else NONE,
                _steps(record.steps_to(grid.target_loss)),
                _spread(record.at(record.loss, end), ".3f"),
                _spread([100 * share for share in record.at(record.accuracy, end)], ".1f"),
            ]
        rows.append(tuple(map(Entry, (_label(grid, setting), *texts))))
    return Table(head, tuple(rows), names=1)


def draw_curves(grid: ToyGrid, found: dict[Setting, ToyRecord]) -> dict[str, bytes]:
    """Return the curves as PNG and SVG by file name. Equal records, equal bytes."""
    return draw_files({"curves": lambda: _figure(grid, found)})


def _figure(grid: ToyGrid, found: dict[Setting, ToyRecord]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 6.2), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, (title, settings) in enumerate(
        [("Variance of the training samples", grid.by_sigma), ("Relabelling by a prior model", grid.by_rho)]
    ):
        # The unmodified one first: the same black line in both columns.
        there = [found[s] for s in sorted(settings, key=lambda s: s != grid.unmodified) if s in found]
        loss, accuracy = panels[0][column], panels[1][column]
        for index, record in enumerate(there):
            _draw(loss, grid, record, record.loss, index)
            _draw(accuracy, grid, record, [[100 * share for share in row] for row in record.accuracy], index)
        loss.set_title(title, loc="left")
        accuracy.axhline(100 * grid.toy.bayes_accuracy, color="#666666", linewidth=1.0, linestyle=(0, (2, 2)))
        accuracy.set_xlabel("SGD steps (log scale)")
        if there:
            accuracy.legend(frameon=False, loc="lower right", fontsize=9.5)
    panels[0][0].set_ylabel("Test loss, nats")
    panels[1][0].set_ylabel("Test accuracy, %\n(dotted: the best possible)")
    figure.suptitle(
        f"{grid.name}: mean over {len(grid.seeds)} seeds" + ", band ± 1 sd" * (len(grid.seeds) > 1), fontweight="bold"
    )
    return figure


def _draw(panel: "Axes", grid: ToyGrid, record: ToyRecord, values: Sequence[Sequence[float]], index: int) -> None:
    """Draw the mean over seeds against the step, and the sample standard deviation as a band around it."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    over_seeds = [summarise(column) for column in zip(*values, strict=True)]
    points = [(step, s) for step, s in zip(grid.toy.evaluate_at, over_seeds, strict=True) if s and step > 0]
    steps = [step for step, _ in points]
    means = [s.mean for _, s in points]
    sds = [s.sd or 0.0 for _, s in points]
    colour = COLOURS[index % len(COLOURS)]
    panel.plot(
        steps,
        means,
        color=colour,
        linestyle=DASHES[index % len(DASHES)],
        marker=MARKERS[index % len(MARKERS)],
        markevery=(index % 3, 3),
        markersize=4.5,
        linewidth=1.6,
        label=_label(grid, record.setting),
    )
    low = [mean - sd for mean, sd in zip(means, sds, strict=True)]
    high = [mean + sd for mean, sd in zip(means, sds, strict=True)]
    panel.fill_between(steps, low, high, color=colour, alpha=0.1, linewidth=0)
    panel.set_xscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _document(grid: ToyGrid, found: dict[Setting, ToyRecord], table: Table, absent: Sequence[str]) -> str:
    toy = grid.toy
    priors = next((record.prior_accuracy for record in found.values() if record.prior_accuracy), ())
    facts = [
        f"Unmodified data and test: {toy.dimension} dimensions, means {toy.distance:g} apart, {SIGMA} = {toy.sigma:g}"
        f" (the standard deviation in each direction); {toy.samples:,} training and {toy.test_samples:,} test samples."
        f" No classifier is right more often than {toy.bayes_accuracy:.1%}.",
        f"Modified data: another {SIGMA} of the training samples, or soft targets, {RHO} · (the prior's probability) +"
        f" (1 - {RHO}) · label.",
        f"Network: one layer of {toy.hidden} ReLU units; SGD, learning rate {toy.lr:g}, batch {toy.batch_size},"
        " cross-entropy.",
        f"Prior: the same network after {toy.prior_steps:,} steps on {toy.prior_samples:,} unmodified samples of its"
        " own; its training is not counted as steps here."
        + f" Its test accuracy: {_spread([100 * share for share in priors], '.1f')} % (n={len(priors)})."
        * bool(priors),
        "The paper's own settings for this study are not known to us: these are this project's choice, and the numbers"
        " compare with one another only.",
    ]
    blocks = [
        f"# {escape_markdown(grid.title or grid.name)}",
        f"Grid `{grid.name}`: {len(found)} of {len(grid.settings)} settings done.",
        _bullets(facts),
        "## Speed of optimisation",
        _caption(grid),
        to_markdown(table),
        "![Test loss and accuracy against SGD steps](curves.png)",
        "## What is not in the numbers",
        _bullets(absent) if absent else f"Nothing: all {len(found)} settings are done, and every record was used.",
        "## Where the numbers come from",
        _bullets(_provenance(list(found.values()))),
    ]
    return "\n\n".join(blocks) + "\n"


def _caption(grid: ToyGrid) -> str:
    return (
        "Test loss: mean cross-entropy (nats) on samples of the unmodified mixture against their true classes. Mean ±"
        " sample standard deviation (ddof 1) over n seeds; the difference is paired by seed. Steps to the loss: median"
        " and range over the seeds of the first evaluation that reaches it."
    )


def _label(grid: ToyGrid, setting: Setting) -> str:
    if setting == grid.unmodified:
        return f"unmodified ({SIGMA} = {setting.sigma:g}, {RHO} = 0)"
    return f"{RHO} = {setting.rho:g}" if setting.rho else f"{SIGMA} = {setting.sigma:g}"


def _spread(values: Sequence[float], form: str) -> str:
    """Return mean ± sample standard deviation, the mean alone of one value."""
    summary = summarise(values)
    return plus_minus(summary, form) if summary else NONE


def _steps(steps: Sequence[float]) -> str:
    """Return median and range; a seed that did not get there has infinitely many."""

    def text(value: float) -> str:
        return "never" if math.isinf(value) else f"{value:g}"

    if min(steps) == max(steps):
        return text(steps[0])
    return f"{text(statistics.median(steps))} ({text(min(steps))} to {text(max(steps))})"


def _others(read: Iterable[ToyRecord | Damaged], found: dict[Setting, ToyRecord]) -> list[ToyRecord]:
    return [one for one in read if isinstance(one, ToyRecord) and one.setting not in found]


def _provenance(records: Sequence[ToyRecord]) -> Iterable[str]:
    """Yield a line for each fact about the records' origin, with the counts where they differ."""
    facts = {
        "Code": [_code(record.provenance.get("code")) for record in records],
        "torch": [_entry(record.provenance.get("packages"), "torch") for record in records],
        "Python": [str(record.provenance.get("python")) for record in records],
        "CPU": [str(record.provenance.get("cpu")) for record in records],
    }
    for name, values in facts.items():
        counts = Counter(values)
        mixed = "; ".join(f"{value} ({count} of {len(values)})" for value, count in sorted(counts.items()))
        yield f"{name}: {values[0] if len(counts) == 1 else mixed}"
    times = sorted(str(record.provenance.get("time")) for record in records)
    yield f"Made: {times[0]}" + f" to {times[-1]}" * (times[0] != times[-1])
    yield f"Training and tests took {sum(record.seconds for record in records):.1f} s in all."


def _code(code: Any) -> str:
    commit = _entry(code, "commit")
    text = f"{_entry(code, 'version')}, " + ("not from a git checkout" if commit == "None" else f"commit {commit}")
    return text + ", with uncommitted changes" * (_entry(code, "dirty") == "True")


def _entry(facts: Any, key: str) -> str:
    return str(facts.get(key)) if isinstance(facts, dict) else "None"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)
