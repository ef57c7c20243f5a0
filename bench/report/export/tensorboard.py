"""Event files for TensorBoard: a run for each cell, and its settings as hyperparameters."""

import io
import re
from collections.abc import Container
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report.export import needs_extra

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "tensorboard"
FILE = "events.out.tfevents.rela-bench"  # TensorBoard knows an event file by the middle of its name
SCALARS = {
    "accuracy": ("linear", "knn"),
    "train": ("loss",),
    "cost": ("images", "train_flops", "target_flops", "train_seconds", "target_seconds"),
}
SETTINGS = ("dataset_title", "arm", "method", "prior", "phase", "backbone", "budget", "seed")


def event_files(frame: "pd.DataFrame") -> dict[str, bytes]:
    """Return an event file for each cell of a tidy frame, by its path `<run>/<file>`.

    Scalars are float32, as TensorBoard's are. Raises UserError when tensorboard is not installed.
    """
    return {f"{_name(rows.iloc[0])}/{FILE}": _events(rows) for _, rows in frame.groupby("id", sort=False)}


def remove_others(folder: Path, kept: Container[str]) -> None:
    """Remove the event files that an earlier export left in a folder and that are not among those to keep."""
    for path in folder.glob(f"*/{FILE}"):
        if str(path.relative_to(folder)) not in kept:
            path.unlink()


def _name(row: "pd.Series[Any]") -> str:
    words = f"{row['dataset']} {row['arm']} {row['budget']:g} seed {row['seed']}"
    return f"{re.sub(r'[^A-Za-z0-9.+=-]+', '_', words)[:150]}_{row['id']}"


def _events(rows: "pd.DataFrame") -> bytes:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise needs_extra(error, "tensorboard") from error
    file = io.BytesIO()
    writer = RecordWriter(file)

    def write(**fields: Any) -> None:
        writer.write(Event(wall_time=began, **fields).SerializeToString())

    first = rows.iloc[0]
    began = _seconds(first["time"])
    write(file_version="brain.Event:2")
    settings = {name: value for name in SETTINGS if (value := first.dropna().get(name)) is not None}
    write(summary=hparams_pb(settings, trial_id=first["id"], start_time_secs=began))
    for _, row in rows.iterrows():
        there = row.dropna()
        values = [
            Summary.Value(tag=f"{group}/{name}", simple_value=there[name])
            for group, names in SCALARS.items()
            for name in names
            if name in there
        ]
        write(step=row["step"], summary=Summary(value=values))
    return file.getvalue()


def _seconds(time: Any) -> float:
    """Return the seconds since 1970 of a record's time, 0 of one that says nothing."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (TypeError, ValueError):
        return 0.0
