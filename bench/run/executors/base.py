"""What every executor is given, and what it returns."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # all of them import torch, and options are looked at before
    from bench.core.paths import Paths
    from bench.plan.graph import Task
    from bench.plan.state import Outcome
    from bench.run.request import RunRequest


@dataclass(frozen=True)
class Work:
    """What is to be run.

    Args:
        tasks: each after the one that it needs, the finished ones among them.
        paths: where data, records and caches are.
        request: what was asked, of this process and of those that it starts.
    """

    tasks: "Sequence[Task]"
    paths: "Paths"
    request: "RunRequest"


@dataclass(frozen=True)
class Resources:
    """The options of `run` that are an executor's, each by its option's name; None: not given."""

    jobs: int | None = None
    gpus_per_cell: int | None = None
    slurm: tuple[str, ...] | None = None


class Executor(ABC):
    """A way to run the cells of a grid: in this process, in several, on other machines.

    `takes` names the fields of `Resources` that it knows what to do with; all others are refused for it.

    Args:
        device: auto, cpu or cuda, as `--device` has it.
        resources: what the user has said. Raises UserError on what cannot be; nothing has been planned yet.
    """

    takes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, device: str, resources: Resources) -> None:
        self.device, self.resources = device, resources

    @abstractmethod
    def run(self, work: Work) -> "list[Outcome]":
        """Run what is not done yet and return what became of each task, in their order.

        A cell that fails ends only itself and those that need it. Raises Interrupted when the user asked to stop,
        once all that runs is saved; WriteError when the folder of results cannot be written.
        """
