"""Records for the tools of others: CSV, Parquet, LaTeX, and TensorBoard's event files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import UserError, did_you_mean
from bench.core.files import atomic_write
from bench.grid.schema import Grid
from bench.report.collect import Collected, collect
from bench.report.export.columns import COLUMNS, tidy_frame
from bench.report.frames import to_csv
from bench.report.latex import escape_latex, latex_document

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

FORMATS = ("csv", "parquet", "latex", "tensorboard")


def write_export(grid: Grid, records: Path, out: Path, formats: Sequence[str]) -> list[Path]:
    """Write a grid's records to the folder `out` in some of FORMATS, and return what was written.

    Raises UserError on an unknown format, when the package that it needs is not there, and when no cell has a result.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format: unknown format {name!r}{did_you_mean(name, FORMATS)}")
    found = collect(grid, records)
    if not found.done:
        raise UserError(f"{records}: no cell of grid {grid.name} is done: nothing to export")
    files: dict[str, bytes] = {}
    if {"csv", "parquet", "tensorboard"} & {*formats}:
        try:
            frame = tidy_frame(found)
        except OverflowError as error:
            raise UserError(f"{records}: a seed or a count there is more than 64 bits hold") from error
    if {"csv", "parquet"} & {*formats}:
        files["columns.md"] = _column_list().encode()
    if "csv" in formats:
        files["points.csv"] = to_csv(frame)
    if "parquet" in formats:
        files["points.parquet"] = _parquet(frame)
    if "latex" in formats:
        files["table.tex"] = _latex(found).encode()
    if "tensorboard" in formats:
        from bench.report.export.tensorboard import FOLDER, event_files, remove_others

        runs = event_files(frame)
        remove_others(out / FOLDER, runs)
        files |= {f"{FOLDER}/{name}": content for name, content in runs.items()}
    for name, content in files.items():
        with atomic_write(out / name) as file:
            file.write(content)
    return [out / name for name in files]


def needs_extra(error: ImportError, name: str) -> UserError:
    """Return what to say when the package of a format is not there."""
    return UserError(f"--format {name} needs the package {error.name}: pip install 'rela-bench[export]'")


def _column_list() -> str:
    lines = [
        "# Columns of points.csv and points.parquet",
        "",
        "One row for each evaluation of each finished cell. The unit 1 is a plain number. In CSV an empty field is a",
        "value that is not there, and numbers have all the digits that bring back the same float64.",
        "",
        "| Column | Type | Unit | Meaning |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {c.type.lower()} | {c.unit or '—'} | {c.meaning} |" for name, c in COLUMNS.items()]
    return "\n".join(lines) + "\n"


def _parquet(frame: "pd.DataFrame") -> bytes:
    """Return a frame as Parquet; each field's metadata has its unit and meaning."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise needs_extra(error, "parquet") from error
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pandas(frame, _schema(), preserve_index=False), file)
    return file.getvalue()


def _schema() -> "pyarrow.Schema":
    import pyarrow

    types = {
        "string": pyarrow.string(),
        "Int64": pyarrow.int64(),
        "Float64": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
    }
    return pyarrow.schema(
        pyarrow.field(name, types[column.type], metadata={"unit": column.unit, "description": column.meaning})
        for name, column in COLUMNS.items()
    )


def _latex(found: Collected) -> str:
    """Return the tables of linear accuracies as a document that compiles as it is."""
    notes = (
        f"{found.grid.title or found.grid.name}. Linear accuracy in % of the test images: mean ± sample standard"
        " deviation (ddof 1) over n training seeds. *: at the full budget, repeated in each row. Bold: the best at that"
        " budget. Underlined: better than *. †: fewer seeds than planned. ‡: a cell learned nothing."
    )
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage[T1]{fontenc}",
            r"\usepackage[utf8]{inputenc}",
            r"\usepackage[a3paper,landscape,margin=15mm]{geometry}",
            r"\usepackage{booktabs}",
            r"\setlength{\parindent}{0pt}",
            r"\setlength{\parskip}{2ex}",
            r"\begin{document}",
            escape_latex(notes),
            "",
            latex_document(found).rstrip(),
            r"\end{document}",
            "",
        ]
    )
