"""The checkpoint of a running cell: all that it needs to go on as if nothing had happened."""

import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from pydantic import TypeAdapter, ValidationError

from bench.core.files import atomic_write, set_aside
from bench.core.paths import Places
from bench.measure.clock import PHASES
from bench.store.record import Cells, Point

VERSION = 2
MAGIC = b"rela-bench checkpoint "
# After what torch saves, which carries no checksum that its reader would look at.
END = len(MAGIC) + 4 + hashlib.sha256().digest_size


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
    """

    seconds: dict[str, float]
    joules: dict[str, float] | None
    wall: float
    peak: int | None
    curve: tuple[Point, ...]
    trainer: dict[str, Any] | None
    side_by_side: Cells = 1
    taken: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError on phases that no clock has."""
        if not {*self.seconds, *(self.joules or {}), *(self.taken or {})} <= {*PHASES}:
            raise ValueError


def checkpoint_path(places: Places, identifier: str) -> Path:
    """Return where a running cell's checkpoint lies."""
    return places.work(identifier) / "checkpoint.pt"


def save_checkpoint(path: Path, identifier: str, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of the cell `identifier`, atomically. Raises WriteError; the earlier one is there then."""
    state = vars(checkpoint) | {"id": identifier, "curve": [point.model_dump() for point in checkpoint.curve]}
    with atomic_write(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]  # it is only written to
        except RuntimeError as error:  # torch hides what the file says
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.write(MAGIC + VERSION.to_bytes(4, "little") + hashing.sha.digest())


def load_checkpoint(path: Path, identifier: str, device: torch.device) -> Checkpoint | None:
    """Return the cell's checkpoint; None when there is none, or one that is damaged or stale, which is set aside."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            version, whole = _read_end(file)
        if version != VERSION:
            set_aside(path, f"a checkpoint of version {version} where {VERSION} is known", "stale")
            return None
        if not whole:
            set_aside(path, "a damaged checkpoint")
            return None
        state = torch.load(path, map_location=device, weights_only=True)
        if state.pop("id") != identifier:
            set_aside(path, "the checkpoint of another cell", "stale")
            return None
        return TypeAdapter(Checkpoint).validate_python(state)
    except (OSError, EOFError, LookupError, TypeError, ValueError, RuntimeError, ValidationError, pickle.PickleError):
        set_aside(path, "not a checkpoint")
        return None


class _Hashing:
    """A file that is only written to, with the digest of what was."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def _read_end(file: IO[bytes]) -> tuple[int, bool]:
    """Return a checkpoint's version, and whether the rest is what was written. Raises ValueError when it is none."""
    length = file.seek(0, os.SEEK_END) - END
    if length < 0:
        raise ValueError
    file.seek(length)
    end = file.read(END)
    if not end.startswith(MAGIC):
        raise ValueError
    sha = hashlib.sha256()
    file.seek(0)
    while length and (block := file.read(min(length, 2**20))):
        sha.update(block)
        length -= len(block)
    version = int.from_bytes(end[len(MAGIC) : len(MAGIC) + 4], "little")
    return version, sha.digest() == end[len(MAGIC) + 4 :]
