"""Weights & Biases: online where there is a key, else in files, which `wandb sync FOLDER` uploads."""

import json
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.run.trackers import Run, Tracker, trackers

# Its files are logs as LevelDB's: after a header, blocks of parts of records, each with its checksum, size and kind.
HEADER, BLOCK, PART = 7, 32768, struct.Struct("<IHB")
WHOLE, END = 1, 4  # kinds of a part of a record that are its last


@trackers.register("wandb")
class WandB(Tracker):
    """Weights & Biases, online or in files in the results folder; settings by its own WANDB_... variables."""

    def __init__(self, run: Run) -> None:
        import wandb

        super().__init__(run)
        folder = Path(os.environ.get("WANDB_DIR") or run.folder)
        rows = [row for path in folder.glob(f"wandb/*run-*-{run.id}*/*.wandb") for row in read_rows(path)]
        self.before = {name: int(row["step"]) for row in sorted(rows, key=lambda row: row["step"]) for name in row}
        self.wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "rela-bench",
            group=os.environ.get("WANDB_RUN_GROUP") or run.grid,
            name=run.name,
            id=run.id,
            resume="allow",
            reinit="create_new",
            dir=folder,
            mode=None if "WANDB_MODE" in os.environ or _has_key() else "offline",
            config=run.config,
            # It neither prints nor takes time for itself: to watch the machine, or to list what is installed.
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_save_requirements=False),
        )
        self.wandb.define_metric("*", step_metric="step")
        self.rows = max(len(rows), self.wandb.step)  # its own steps, one a row: two rows may be of one step of training

    @classmethod
    def load(cls) -> None:
        """Import it, without the reports of its errors that it sends."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb.proto.wandb_internal_pb2  # noqa: F401

    def last(self) -> dict[str, int]:
        """Return what its files have."""
        return self.before

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values as a row."""
        self.wandb.log({"step": step, **values}, step=self.rows, commit=True)
        self.rows += 1

    def close(self, status: str) -> None:
        """Finish the run."""
        self.wandb.finish(exit_code=int(status != "done"))


def read_rows(path: Path) -> Iterator[dict[str, float]]:
    """Yield the rows of values in a file of W&B, up to where a kill has cut it."""
    records: Any = import_module("wandb.proto.wandb_internal_pb2")  # whose types are made as it is imported
    data, at, parts = path.read_bytes(), HEADER, b""
    while at + PART.size <= len(data):
        if (room := BLOCK - at % BLOCK) < PART.size:
            at += room
            continue
        _, size, kind = PART.unpack_from(data, at)
        part = data[at + PART.size : at + PART.size + size]
        if not kind or len(part) < size:
            return
        at += PART.size + size
        parts += part
        if kind in (WHOLE, END):
            record, parts = records.Record.FromString(parts), b""
            row = {each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in record.history.item}
            if "step" in row:
                yield {name: value for name, value in row.items() if not name.startswith("_")}


def _has_key() -> bool:
    """Return whether the user has logged in: an interactive question would wait for ever."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    with suppress(OSError, NetrcParseError):
        return "WANDB_API_KEY" in os.environ or netrc().authenticators(host) is not None
    return False
