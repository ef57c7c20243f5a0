"""The tables for other tools as frames of pandas."""

from collections.abc import Sequence
from typing import TypeVar

import pandas as pd

from bench.report.collect import Collected
from bench.report.columns import RESULTS, Column
from bench.report.points import POINTS, evaluations

Row = TypeVar("Row")


def frame(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> pd.DataFrame:
    values = {column.name: [column.value(row) for row in rows] for column in columns}
    return pd.DataFrame({column.name: pd.Series(values[column.name], dtype=column.type) for column in columns})


def tidy_frame(found: Collected) -> pd.DataFrame:
    return frame(POINTS, evaluations(found))


def results_frame(found: Collected) -> pd.DataFrame:
    return frame(RESULTS, found.results)
