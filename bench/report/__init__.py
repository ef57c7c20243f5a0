"""Tables, figures and verdicts from records."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.core.environment import keeping_all
from bench.core.errors import UserError, did_you_mean
from bench.core.files import atomic_write
from bench.grid.schema import Grid
from bench.report.blocks import Document, Figure
from bench.report.collect import Collected, collect
from bench.report.columns import RESULTS
from bench.report.document import report_document
from bench.report.figures.draw import SUFFIXES, NotDrawn, guarded, image_files
from bench.report.points import BRIEF, POINTS, evaluations
from bench.report.render.data import column_list, to_csv, to_parquet
from bench.report.render.html import html_document
from bench.report.render.latex import latex_document
from bench.report.render.markdown import markdown_document
from bench.report.render.text import terminal_text

__all__ = ["FORMATS", "NotDrawn", "write_report"]

FORMATS = ("md", "html", "latex", "csv", "parquet", "tensorboard")
USUAL = FORMATS[:4]  # need no further package
IMAGES = ("accuracy_vs_steps", "accuracy_vs_flops", "accuracy_vs_epochs", "saving_vs_target")


@keeping_all()
def write_report(grid: Grid, records: Path, out: Path, formats: Sequence[str] = USUAL) -> str:
    """Write what a grid's records say to the folder `out`, in some of FORMATS, and return a text for the terminal.

    Reads records only and trains nothing. Raises UserError when the grid has no record, on an unknown format, and when
    a format needs a package that is not there.
    """
    check_formats(formats, FORMATS)
    found = collect(grid, records)
    files = _files(found, formats)
    written = [f"{out}: {', '.join(files)}"] if files else []
    if "tensorboard" in formats:
        from bench.report.render.tensorboard import write_runs

        count = write_runs(evaluations(found), out / "tensorboard")
        written.append(f"{out / 'tensorboard'}: {count} runs")
    write_files(files, out, IMAGES if "md" in formats else ())
    return terminal_text(found, written)


def check_formats(formats: Iterable[str], known: Sequence[str]) -> None:
    """Raise UserError when a format is not known."""
    for name in formats:
        if name not in known:
            raise UserError(f"--format: unknown format {name!r}{did_you_mean(name, known)}")


def _files(found: Collected, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the files of the formats by name; the figures come with Markdown, which shows them."""
    files: dict[str, bytes] = {}
    document = report_document(found) if {"md", "html"} & {*formats} else None
    if document and "md" in formats:
        files["report.md"] = markdown_document(document).encode()
    if document and "html" in formats:
        files["index.html"] = html_document(document).encode()
    if {"csv", "parquet"} & {*formats}:
        rows = evaluations(found)
        files["columns.md"] = column_list().encode()
    if "csv" in formats:
        files |= {"table.csv": to_csv(RESULTS, found.results), "points.csv": to_csv(BRIEF, rows)}
        files["tidy.csv"] = to_csv(POINTS, rows)
    if "parquet" in formats:
        files["tidy.parquet"] = to_parquet(POINTS, rows)
    if "latex" in formats:
        files["table.tex"] = latex_document(found).encode()
    if document and "md" in formats:
        files |= images(document, found.grid.name)
    return files


def images(document: Document, title: str) -> dict[str, bytes]:
    """Return the images of a document by file name."""
    there = [image for block in document.blocks if isinstance(block, Figure) for image in block.images]
    files: dict[str, bytes] = {}
    for image in there:
        if image.view.charts:
            files |= guarded(image.name, partial(image_files, image.name, image.view, title)) or {}
    return files


def write_files(files: Mapping[str, bytes], out: Path, figures: Iterable[str]) -> None:
    """Write a report's files to a folder, and remove those of the figures that are an earlier report's alone."""
    for name in (f"{figure}.{suffix}" for figure in figures for suffix in SUFFIXES):
        if name not in files:
            (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        with atomic_write(out / name) as file:
            file.write(content)
