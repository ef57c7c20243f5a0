"""Which cells run on this machine now: a process leaves a note in the cache for as long as it runs one.

A cell's seconds are its own only while it is alone on its device. Runners that share a cache find each other through
these notes, whatever their results folders. Linux only, where a killed process can be told from a running one.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import torch

from bench.core.environment import side_by_side
from bench.core.machine import identity, is_here, lives, usable_cores
from bench.core.paths import Places

NOTE_BYTES = 100_000  # no note is longer


@contextmanager
def present(places: Places, cell_id: str, device: torch.device) -> Iterator[Callable[[], int]]:
    """Announce that this process runs a cell; yield a function that counts the cells on the device, including this one.

    Where the cache cannot be written, others do not know of it.
    """
    folder = places.cache / "running"
    cell, parts = str(places.work(cell_id).absolute()), _parts(device)
    path = folder / f"{uuid4()}.json"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**identity(), "cell": cell, "device": parts}))
    try:
        yield lambda: max(side_by_side(), len({cell, *_all(folder, parts)}))
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _parts(device: torch.device) -> list[str]:
    """Return what the device is made of: a GPU, or the cores that this process may use."""
    if device.type == "cuda":
        return [f"GPU {torch.cuda.get_device_properties(device).uuid}"]
    return [f"core {core}" for core in sorted(usable_cores())]


def _all(folder: Path, parts: list[str]) -> set[str]:
    """Return the cells that have a part of the device; removes the notes of processes that were killed."""
    cells = set()
    with suppress(OSError):
        for path in folder.iterdir():
            # Some may be gone by now, or half written; what is no note counts for nothing.
            with suppress(OSError, ValueError, LookupError, TypeError, RecursionError), path.open("rb") as file:
                note = json.loads(file.read(NOTE_BYTES))
                if not is_here(note):
                    continue
                if not lives(note):
                    path.unlink(missing_ok=True)
                elif not set(parts).isdisjoint(note["device"]):
                    cells.add(str(note["cell"]))
    return cells
