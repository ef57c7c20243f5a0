"""Where things lie on this machine. None of it is part of a cell's identity."""

import os
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import UserError


def expanded(path: str | Path) -> Path:
    """Return what a user has written as a path, with the home folder for its ~ or ~NAME. Raises UserError."""
    if isinstance(path, Path) or not path.startswith("~"):
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: no home folder is known for {Path(path).parts[0]}; write ./{path} if it is a name"
        ) from error


def is_file(path: Path) -> bool:
    """Return whether there is such a file; a name that is too long for a file's is none's."""
    try:
        return path.is_file()
    except OSError:
        return False


EVALUATIONS = "evaluations"  # the folder of further evaluations, beside the records of cells


@dataclass(frozen=True)
class Paths:
    """The folders of a run.

    Args:
        data: datasets, and priors' weights under `priors/` (`--data-root`, or BENCH_DATA, or `data`).
        results: one folder of records per grid (`--results`, or `results`).
        grid: the grid's name.
        targets: where the cache of targets is, when it is not with the other caches.
        rehearsal: whether cells are only rehearsed: untrained priors, few test images, a mark in the records.
    """

    data: Path
    results: Path
    grid: str
    targets: Path | None = None
    rehearsal: bool = False

    @property
    def mark(self) -> str:
        """What the name of each dataset begins with in the records."""
        return "REHEARSAL: " if self.rehearsal else ""

    @property
    def cache(self) -> Path:
        """Decoded images and targets: safe to delete (BENCH_CACHE, or `cache` below the data)."""
        return expanded(os.environ.get("BENCH_CACHE") or self.data / "cache")

    @property
    def records(self) -> Path:
        """One JSON file for every finished cell."""
        return self.results / self.grid

    def work(self, cell_id: str) -> Path:
        """What a cell leaves behind while it runs: logs and a checkpoint."""
        return self.records / ".work" / cell_id

    def tracking(self, tracker: str) -> Path:
        """What a tracker writes of the grid's cells while they run."""
        return self.records / "tracking" / tracker

    def lock(self, cell_id: str) -> Path:
        """What a runner locks before it runs the cell (`bench.core.lock`)."""
        return self.work(cell_id) / "lock"

    def evaluations(self, cell_id: str) -> Path:
        """One JSON file for every further evaluation of a finished cell."""
        return self.records / EVALUATIONS / cell_id

    def backbone(self, cell_id: str) -> Path:
        """The trained backbone of a cell that other cells use as prior."""
        return self.records / "backbones" / f"{cell_id}.safetensors"
