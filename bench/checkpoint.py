"""The checkpoint of a running cell: all that it needs to go on as if nothing had happened."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.atomic import atomic_write
from bench.meter import Clock
from bench.places import Places
from bench.store import Point
from bench.train import Trainer

VERSION = 2


def checkpoint_path(places: Places, identifier: str) -> Path:
    """Return where a running cell's checkpoint lies."""
    return places.work(identifier) / "checkpoint.pt"


def save_checkpoint(path: Path, identifier: str, trainer: Trainer, clock: Clock, curve: Sequence[Point]) -> None:
    """Write the checkpoint of the cell `identifier`, atomically."""
    state = {
        "version": VERSION,
        "id": identifier,
        "seconds": clock.read(),
        "joules": clock.joules(),
        "wall": clock.wall,
        "curve": [point.model_dump() for point in curve],
        "trainer": trainer.state(),
    }
    with atomic_write(path) as file:
        torch.save(state, file)


def resume(path: Path, identifier: str, trainer: Trainer, clock: Clock) -> list[Point]:
    """Restore trainer and clock from a checkpoint, if there is one that fits, and return its curve."""
    if not path.is_file():
        return []
    try:
        state = torch.load(path, map_location=clock.device, weights_only=True)
        if state["version"] != VERSION or state["id"] != identifier:
            return []
        curve = [Point.model_validate(point) for point in state["curve"]]
        trainer.restore(state["trainer"])
        clock.add(state["seconds"], state["wall"], state["joules"])
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError):
        path.rename(path.with_suffix(".damaged"))
        return []
    return curve
