"""Tables for other tools: CSV, Parquet, and what their columns mean."""

import csv
import io
from collections.abc import Sequence
from typing import TypeVar

from bench.core.errors import UserError
from bench.report.columns import RESULTS, Column
from bench.report.points import BRIEF, POINTS

Row = TypeVar("Row")


def to_csv(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> bytes:
    """Return a table as CSV: numbers with all of their digits, nothing where a value is missing."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    writer.writerows([column.value(row) for column in columns] for row in rows)
    return file.getvalue().encode()


def to_parquet(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> bytes:
    """Return a table as Parquet; each field's metadata has its unit and meaning.

    Raises UserError without pyarrow, and on a whole number of more than 64 bits.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise needs_extra(error, "parquet") from error
    import pandas as pd

    schema = pyarrow.schema(
        pyarrow.field(each.name, each.type.lower(), metadata={"unit": each.unit, "description": each.meaning})
        for each in columns
    )
    cells = [[each.value(row) for each in columns] for row in rows]
    try:
        frame = pd.DataFrame(cells, columns=schema.names, dtype=object).astype({c.name: c.type for c in columns})
    except OverflowError as error:
        raise UserError("--format parquet: a seed or a count is more than 64 bits hold; csv has all digits") from error
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pandas(frame, schema, preserve_index=False), file)
    return file.getvalue()


def needs_extra(error: ImportError, name: str) -> UserError:
    """Return what to say when the package of a format is not there."""
    return UserError(f"--format {name} needs the package {error.name}: pip install 'rela-bench[export]'")


def column_list() -> str:
    """Return what the columns mean, as Markdown."""
    return "\n\n".join(
        [
            "# Columns",
            "The unit 1 is a plain number. In CSV an empty field is a value that is not there, and numbers have all the"
            " digits that bring back the same float64.",
            "## tidy.csv and tidy.parquet",
            f"One row for each evaluation of each finished cell. points.csv has the columns to {BRIEF[-1].name}.",
            _described(POINTS),
            "## table.csv",
            "One row for each arm, budget and dataset of the grid; where no seed is finished, n is 0.",
            _described(RESULTS) + "\n",
        ]
    )


def _described(columns: Sequence[Column[Row]]) -> str:
    lines = ["| Column | Type | Unit | Meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| {c.name} | {c.type.lower()} | {c.unit or '—'} | {c.meaning} |" for c in columns]
    return "\n".join(lines)
