"""A running cell's values on their way to a tracker, on a thread that neither delays the training nor can fail it."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from bench.core.errors import describe_error
from bench.core.paths import Paths
from bench.plan.graph import Ready
from bench.run.trackers import Run, find_tracker

CLOSE_SECONDS = 10.0  # that a tracker has, once its cell has ended, for what it was given


class Tracked:
    """A cell that a tracker follows until it fails, which is a warning.

    Args:
        name: of the tracker.
        warn: called with why the cell is tracked no more; on any thread.
    """

    def __init__(self, name: str, task: Ready, paths: Paths, warn: Callable[[str], None]) -> None:
        self.name, self.warn = name, warn
        self.run = Run(
            grid=paths.grid,
            id=task.id,
            name=str(task.cell),
            config={"arm": task.cell.arm, **task.cell.settings()},
            folder=paths.tracking(name),
        )
        self.given: SimpleQueue[tuple[int, dict[str, float]] | str] = SimpleQueue()
        self.left = False
        self.thread = Thread(target=self._follow, name=f"track {task.id}", daemon=True)
        self.thread.start()

    def put(self, step: int, values: dict[str, float]) -> None:
        """Have values logged, if they are not there yet."""
        if self.thread.is_alive():
            self.given.put((step, values))

    def close(self, status: str) -> None:
        """Wait for a moment until all is logged."""
        self.given.put(status)
        self.thread.join(CLOSE_SECONDS)
        self.left = True
        if self.thread.is_alive():
            self.warn(f"{self.name} still works {CLOSE_SECONDS:g} s after the end of the cell, and is left alone")

    def _follow(self) -> None:
        try:
            self.run.folder.mkdir(parents=True, exist_ok=True)
            tracker = find_tracker(self.name)(self.run)
            last = dict(tracker.last())
            while not isinstance(given := self.given.get(), str):
                step, values = given
                fresh = {name: value for name, value in values.items() if step > last.get(name, -1)}
                if fresh:
                    tracker.log(step, fresh)
                    last |= dict.fromkeys(fresh, step)
            tracker.close(given)
        except BaseException as error:  # a plugin may raise anything, and the cell must go on
            if not self.left:
                self.warn(f"{self.name}: {describe_error(error)}")
