"""The cells one after the other, in this process."""

from bench.device import find_device
from bench.executors import Executor, Resources, Work, executors
from bench.outcome import Outcome
from bench.progress import Display
from bench.runner import run_tasks


@executors.register("local")
class Local(Executor):
    """On this machine, one cell after the other (default)."""

    torchrun = True

    def __init__(self, device: str, resources: Resources) -> None:
        super().__init__(device, resources)
        self.found = find_device(device)

    def run(self, work: Work) -> list[Outcome]:
        """Run the cells in this process."""
        return run_tasks(work.tasks, work.places, self.found, work.workers, Display(work.places.mark), work.limits)
