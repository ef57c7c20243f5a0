"""TensorBoard: event files, `tensorboard --logdir FOLDER` shows them."""

import re

from bench.run.trackers import Run, Tracker, trackers


@trackers.register("tensorboard")
class TensorBoard(Tracker):
    """TensorBoard's event files, in the results folder."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(run)
        self.folder = run.folder / f"{re.sub(r'[^A-Za-z0-9.+=-]+', '_', run.name)[:150]}_{run.id}"
        self.before = self._before()
        self.writer = SummaryWriter(str(self.folder))

    @classmethod
    def load(cls) -> None:
        """Import it."""
        import tensorboard.backend.event_processing.event_accumulator  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401

    def _before(self) -> dict[str, int]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        if not self.folder.is_dir():
            return {}
        events = EventAccumulator(str(self.folder)).Reload()
        return {name: max(each.step for each in events.Scalars(name)) for name in events.Tags()["scalars"]}

    def last(self) -> dict[str, int]:
        """Return what its event files have."""
        return self.before

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values, as float32."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, status: str) -> None:
        """Close the file."""
        self.writer.close()
