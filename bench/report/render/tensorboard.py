"""Event files for TensorBoard: a run for each cell, and its settings as hyperparameters."""

import re
from collections.abc import Iterable
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.report.points import POINTS, Evaluation
from bench.report.render.data import needs_extra

SUFFIX = ".rela-bench"  # of our event files
SCALARS = {
    "accuracy": ("linear", "knn"),
    "train": ("loss",),
    "cost": ("images", "train_flops", "target_flops", "train_seconds", "target_seconds"),
}
SETTINGS = ("dataset_title", "arm", "method", "prior", "phase", "backbone", "budget", "seed")
VALUE = {column.name: column.value for column in POINTS}


def write_runs(rows: Iterable[Evaluation], folder: Path) -> int:
    """Write the evaluations to a folder in place of those of an earlier report, and return how many runs there are.

    Scalars are float32, as TensorBoard's are. Raises UserError when tensorboard is not installed.
    """
    try:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise needs_extra(error, "tensorboard") from error
    for path in folder.glob(f"*/events.out.tfevents.*{SUFFIX}"):
        path.unlink()
    runs = 0
    for _, points in groupby(rows, key=lambda row: row.record.id):
        first, *rest = points
        began = _seconds(VALUE["time"](first))
        settings = {name: value for name in SETTINGS if (value := VALUE[name](first)) is not None}
        with SummaryWriter(str(folder / _name(first)), filename_suffix=SUFFIX) as writer:
            session = hparams_pb(settings, trial_id=first.record.id, start_time_secs=began)
            writer.file_writer.add_summary(session, walltime=began)
            for row in (first, *rest):
                for tag, value in _scalars(row).items():
                    writer.add_scalar(tag, value, row.point.step, walltime=began)
        runs += 1
    return runs


def _scalars(row: Evaluation) -> dict[str, Any]:
    there = {f"{group}/{name}": VALUE[name](row) for group, names in SCALARS.items() for name in names}
    return {tag: value for tag, value in there.items() if value is not None}


def _name(row: Evaluation) -> str:
    cell = row.record.cell
    words = f"{cell.dataset} {row.result.label} {cell.budget:g} seed {cell.seed}"
    return f"{re.sub(r'[^A-Za-z0-9.+=-]+', '_', words)[:150]}_{row.record.id}"


def _seconds(time: Any) -> float:
    """Return the seconds since 1970 of a record's time, 0 of one that says nothing."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (TypeError, ValueError):
        return 0.0
