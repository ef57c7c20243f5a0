"""What `run` is asked about each cell, and the command that asks another process the same."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.core.environment import checkpoint_seconds, make_deterministic, own_command
from bench.core.registry import load_plugin
from bench.grid.load import find_grid
from bench.plan.request import Request
from bench.run.trackers import find_tracker

if TYPE_CHECKING:
    import torch

    from bench.train.keeper import Limits

MOST_WORKERS = 16  # each has two batches in shared memory


@dataclass(frozen=True)
class RunRequest(Request):
    """A request on a grid, and how its cells are trained; which of them run, and by whom, is not part of it."""

    device: str = "auto"
    workers: int | None = None
    deterministic: bool = False
    cell_timeout: float | None = None
    track: str | None = None

    def to_argv(self) -> tuple[str, ...]:
        """Return the command that runs the grid from any folder, for `--cell` and an executor's options behind it."""
        options: list[tuple[str, object]] = [("--grid", find_grid(self.grid).absolute())]
        options += [("--profile", self.profile)] if self.profile else []
        options += [("--set", setting) for setting in self.settings]
        options += [("--plugin", path.absolute()) for path in self.plugins]
        options += [("--data-root", self.data_root.absolute()), ("--results", self.results.absolute())]
        options += [("--device", self.device)]
        options += [("--workers", self.workers)] if self.workers is not None else []
        options += [("--cell-timeout", self.cell_timeout)] if self.cell_timeout is not None else []
        options += [("--track", self.track)] if self.track else []
        words = [str(word) for option in options for word in option]
        return (*own_command(), "run", *words, *(["--deterministic"] if self.deterministic else []))

    def prepare_process(self) -> None:
        """Load the plugins and the tracker, and have torch choose deterministic algorithms if that is asked for.

        Raises UserError.
        """
        if self.deterministic:
            make_deterministic()
        checkpoint_seconds()  # a wrong value is refused before anything runs
        for path in self.plugins:
            load_plugin(path)
        if self.track:
            find_tracker(self.track)

    def workers_for(self, device: "torch.device") -> int:
        """Return how many processes decode images: two, and for a GPU as many as this one has threads, up to 16."""
        import torch

        default = 2 if device.type == "cpu" else min(max(2, torch.get_num_threads()), MOST_WORKERS)
        return default if self.workers is None else self.workers

    def limits(self) -> "Limits":
        """Return the seconds between two checkpoints, and those that a cell may take."""
        from bench.train.keeper import Limits  # imports torch

        return Limits(checkpoint_seconds(), self.cell_timeout)
