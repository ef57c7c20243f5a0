"""What every tracker is told."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """A cell that is tracked.

    Args:
        grid: the grid's name.
        id: of the cell; a cell that goes on, or is run again, has the same one.
        name: the cell's name for people.
        config: the settings that decide its result, and its arm's name; ready for JSON.
        folder: the tracker's own in the results of the grid, shared by its cells; there already.
    """

    grid: str
    id: str
    name: str
    config: dict[str, Any]
    folder: Path


class Tracker(ABC):
    """A place that shows the values of one running cell.

    All of it is called on one thread beside the training. Whatever it raises ends the tracking of this cell and nothing
    else. It must not draw from the global generators of `random`, numpy and torch, which the training seeds.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @classmethod  # noqa: B027
    def load(cls) -> None:
        """Import what it needs, before anything runs. Raises ImportError."""

    @abstractmethod
    def last(self) -> dict[str, int]:
        """Return the last step of each value that earlier runs of the cell have logged: only later ones will be."""

    @abstractmethod
    def log(self, step: int, values: dict[str, float]) -> None:
        """Show values after a step, in order of the steps. The last ones may be lost in a kill: then `last` tells."""

    def close(self, status: str) -> None:  # noqa: B027
        """End, with the status of the cell: done, failed, oom, timeout, or interrupted, after which it may go on."""
