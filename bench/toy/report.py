"""The report of a two-Gaussian study (`bench.toy.study`): reads records only and trains nothing."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.core.errors import NotMadeError
from bench.report import check_formats, images, write_files
from bench.report.blocks import Block, Bullets, Code, Document, Figure, Heading, Image, Paragraph, TableBlock, Text
from bench.report.facts import summarise
from bench.report.figures.chart import Chart, Mark, Series, View
from bench.report.render.markdown import markdown_document
from bench.report.render.text import to_text
from bench.report.sections.origin import code_of, origin_lines
from bench.report.tables import NONE, Table, entries, one_line, plus_minus
from bench.store.reading import Damaged
from bench.store.record import record_files
from bench.toy.study import Setting, ToyGrid, ToyRecord, read_toy

SIGMA, RHO = "\N{GREEK CAPITAL LETTER SIGMA}", "\N{GREEK SMALL LETTER RHO}"
FORMATS = ("md",)
CAPTION = (
    "Test loss: mean cross-entropy (nats) on samples of the unmodified mixture against their true classes. Mean ±"
    " sample standard deviation (ddof 1) over n seeds; the difference is paired by seed. Steps to the loss: median"
    " and range over the seeds of the first evaluation that reaches it."
)
Found = dict[Setting, ToyRecord]


def write_toy_report(grid: ToyGrid, records: Path, out: Path, formats: Sequence[str] = FORMATS) -> str:
    """Write table and plot to the folder `out` and return a short text for the terminal.

    Raises UserError when there is no record of the study, and on a format that it does not have.
    """
    check_formats(formats, FORMATS)
    read = [read_toy(path) for path in record_files(records)]
    planned = grid.settings
    found = {record.setting: record for record in read if isinstance(record, ToyRecord) and record.setting in planned}
    absent = [f"missing: {setting}: no record" for setting in planned if setting not in found]
    absent += [f"damaged: {one.path.name}: {one.reason}" for one in read if isinstance(one, Damaged)]
    absent += [f"left out: {one.id}: made with settings that the grid does not have" for one in _others(read, found)]
    if not found:
        others = "".join(f"; {line}" for line in absent if not line.startswith("missing"))
        raise NotMadeError(f"{records}: no record of {grid.name}{others}", "run")
    document = _document(grid, found, absent)
    files = {"report.md": markdown_document(document).encode(), **images(document, _title(grid))}
    write_files(files, out, ["curves"])
    parts = [
        f"{grid.name}: {len(found)} of {len(planned)} settings done",
        f"{CAPTION}\n{to_text(toy_table(grid, found))}",
        "\n".join(map(one_line, absent)),
        "\n".join(["wrote", *(f"  {out / name}" for name in files)]),
    ]
    return "\n\n".join(filter(None, parts))


def toy_table(grid: ToyGrid, found: Found) -> Table:
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
        texts = [NONE] * (len(head) - 1)
        if record:
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
        rows.append(entries(_label(grid, setting), *texts))
    return Table(head, tuple(rows), names=1)


def curves(grid: ToyGrid, found: Found) -> View:
    """Return test loss and accuracy against the step: by the variance of the samples, and by relabelling."""
    by = (("Variance of the training samples", grid.by_sigma), ("Relabelling by a prior model", grid.by_rho))
    charts = [
        _chart(grid, found, f"{title}: test {what}", there, what)
        for what in ("loss", "accuracy")
        for title, there in by
    ]
    return View("curves", tuple(charts))


def _chart(grid: ToyGrid, found: Found, title: str, settings: Sequence[Setting], what: str) -> Chart:
    series = [_curve(grid, found[setting], what) for setting in settings if setting in found]
    if what == "accuracy":
        best = 100 * grid.toy.bayes_accuracy
        series.append(Series("the best possible", 0, (), kind="reference", level=best))
    return Chart(title, "SGD steps", "Nats" if what == "loss" else "% of test samples", tuple(series), log=True)


def _curve(grid: ToyGrid, record: ToyRecord, what: str) -> Series:
    """Return the mean over seeds at each step but the first, which a logarithmic axis does not have."""
    scale, values = (1, record.loss) if what == "loss" else (100, record.accuracy)
    marks = []
    for step, column in zip(grid.toy.evaluate_at, zip(*values, strict=True), strict=True):
        summary = summarise(scale * value for value in column)
        if summary and step:
            marks.append(Mark(step, summary.mean, "", *summary.bounds))
    return Series(_label(grid, record.setting), grid.settings.index(record.setting), tuple(marks), kind="curve")


def _title(grid: ToyGrid) -> str:
    return f"{grid.name}: mean over {len(grid.seeds)} seeds" + (", band ± 1 sd" if len(grid.seeds) > 1 else "")


def _document(grid: ToyGrid, found: Found, absent: Sequence[str]) -> Document:
    image = Image("Test loss and accuracy against SGD steps", "curves", curves(grid, found))
    nothing = f"Nothing: all {len(found)} settings are done, and every record was used."
    blocks: list[Block] = [
        Paragraph(("Grid ", Code(grid.name), f": {len(found)} of {len(grid.settings)} settings done.")),
        Bullets(tuple(_facts(grid, found))),
        Heading("Speed of optimisation"),
        Paragraph(CAPTION),
        TableBlock("speed", toy_table(grid, found)),
        Figure("curves", image.title, (image,)),
        Heading("What is not in the numbers"),
        Bullets(tuple(map(one_line, absent))) if absent else Paragraph(nothing),
        Heading("Where the numbers come from"),
        Bullets((*_provenance(list(found.values())),)),
    ]
    return Document(grid.title or grid.name, tuple(blocks))


def _facts(grid: ToyGrid, found: Found) -> list[str]:
    toy = grid.toy
    priors = next((record.prior_accuracy for record in found.values() if record.prior_accuracy), ())
    reached = f" Its test accuracy: {_spread([100 * share for share in priors], '.1f')} % (n={len(priors)})."
    return [
        f"Unmodified data and test: {toy.dimension} dimensions, means {toy.distance:g} apart, {SIGMA} = {toy.sigma:g}"
        f" (the standard deviation in each direction); {toy.samples:,} training and {toy.test_samples:,} test samples."
        f" No classifier is right more often than {toy.bayes_accuracy:.1%}.",
        f"Modified data: another {SIGMA} of the training samples, or soft targets, {RHO} · (the prior's probability) +"
        f" (1 - {RHO}) · label.",
        f"Network: one layer of {toy.hidden} ReLU units; SGD, learning rate {toy.lr:g}, batch {toy.batch_size},"
        " cross-entropy.",
        f"Prior: the same network after {toy.prior_steps:,} steps on {toy.prior_samples:,} unmodified samples of its"
        f" own; its training is not counted as steps here.{reached if priors else ''}",
        "The paper's own settings for this study are not known to us: these are this project's choice, and the numbers"
        " compare with one another only.",
    ]


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


def _others(read: Iterable[ToyRecord | Damaged], found: Found) -> list[ToyRecord]:
    return [one for one in read if isinstance(one, ToyRecord) and one.setting not in found]


def _provenance(records: Sequence[ToyRecord]) -> Iterable[Text]:
    """Yield a line for each fact about the records' origin, and what they took."""
    origins = [record.provenance for record in records]
    packages = [origin.get("packages") for origin in origins]
    facts = {
        "Code": [code_of(origin) for origin in origins],
        "torch": [each.get("torch") if isinstance(each, dict) else None for each in packages],
        "Python": [origin.get("python") for origin in origins],
        "CPU": [origin.get("cpu") for origin in origins],
    }
    yield from origin_lines(facts, [origin.get("time") for origin in origins])
    yield f"Training and tests took {sum(record.seconds for record in records):.1f} s in all."
