"""The checkpoint of a running cell: everything that it needs to resume exactly."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from bench.core.files import atomic_write, set_aside
from bench.core.paths import Paths
from bench.measure.clock import PHASES
from bench.measure.memory import is_out_of_memory
from bench.store.record import Cells, Point

VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """Where a cell stands.

    Args:
        seconds: spent until then, by phase.
        joules: of the GPU until then, by phase; None: not measured.
        wall: seconds of wall time until then.
        peak: bytes of memory at most until then, where known.
        curve: the evaluations until then.
        trainer: the trainer's state; None before its first step.
        side_by_side: cells on the device at a time until then, at most.
        taken: seconds of those spent that other work took, by phase; None: not known.
        values: what was tracked until then, after which step.
        code: digests of the code that began the cell; None: not known.
    """

    seconds: dict[str, float]
    joules: dict[str, float] | None
    wall: float
    peak: int | None
    curve: tuple[Point, ...]
    trainer: dict[str, Any] | None
    side_by_side: Cells = 1
    taken: dict[str, float] | None = None
    values: tuple[tuple[int, dict[str, float]], ...] = ()
    code: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError on phases that no clock has."""
        if not {*self.seconds, *(self.joules or {}), *(self.taken or {})} <= {*PHASES}:
            raise ValueError


def checkpoint_path(paths: Paths, identifier: str) -> Path:
    """Return where a running cell's checkpoint lies."""
    return paths.work(identifier) / "checkpoint.pt"


def save_checkpoint(path: Path, identifier: str, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of the cell `identifier`, atomically. Raises WriteError; the earlier one is there then."""
    curve = [point.model_dump() for point in checkpoint.curve]
    with atomic_write(path) as file:
        try:
            torch.save(vars(checkpoint) | {"curve": curve, "id": identifier, "version": VERSION}, file)
        except RuntimeError as error:  # torch hides what the file says
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load_checkpoint(path: Path, identifier: str) -> Checkpoint | None:
    """Return the cell's checkpoint; None when there is none, or one that is damaged or stale, which is set aside.

    Its tensors are on the CPU: a GPU needs no room for two states.
    """
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # the checksums, which torch's reader does not look at
                set_aside(path, "a damaged checkpoint")
                return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        version, of = state.pop("version", 2), state.pop("id")
        if version != VERSION:
            set_aside(path, f"a checkpoint of version {version} where {VERSION} is known", "stale")
            return None
        if of != identifier:
            set_aside(path, "the checkpoint of another cell", "stale")
            return None
        return TypeAdapter(Checkpoint).validate_python(state)
    except Exception as error:  # torch and zipfile raise nearly anything on what they did not write
        if is_out_of_memory(error):
            raise
        set_aside(path, "not a checkpoint")
        return None
