"""What every executor is given, and what it returns."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # all of them import torch, and options are looked at before
    from bench.core.paths import Places
    from bench.plan.graph import Task
    from bench.plan.state import Outcome
    from bench.train.cell import Limits


@dataclass(frozen=True)
class Work:
    """What is to be run.

    Args:
        tasks: each after the one that it needs, the finished ones among them.
        places: where data, records and caches are.
        workers: processes that decode images of a set that streams.
        limits: seconds between checkpoints, and seconds that a cell may take.
        command: the words that run the grid in a new process, with all options but those that choose cells or are
            of `Resources`; `--cell` is put behind them. Its paths are absolute.
    """

    tasks: "Sequence[Task]"
    places: "Places"
    workers: int
    limits: "Limits"
    command: tuple[str, ...]


@dataclass(frozen=True)
class Resources:
    """The options of `run` that are an executor's, each by its option's name; None: not given."""

    jobs: int | None = None
    jobs_per_gpu: int | None = None
    partition: str | None = None
    gpus_per_cell: int | None = None
    nodes_per_cell: int | None = None
    array_parallelism: int | None = None
    slurm: tuple[str, ...] | None = None

    @classmethod
    def among(cls, options: dict[str, Any]) -> "Resources":
        """Return those among all options of `run`."""
        given = {field.name: options[field.name] for field in fields(cls)}
        return cls(**given | {"slurm": tuple(given["slurm"] or ()) or None})


class Executor(ABC):
    """A way to run the cells of a grid: in this process, in several, on other machines.

    `takes` names the fields of `Resources` that it knows what to do with; all others are refused for it.
    `torchrun` tells whether it may be called in several processes at once that train each cell together.

    Args:
        device: auto, cpu or cuda, as `--device` has it.
        resources: what the user has said. Raises UserError on what cannot be; nothing has been planned yet.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    torchrun: ClassVar[bool] = False

    def __init__(self, device: str, resources: Resources) -> None:
        self.device, self.resources = device, resources

    @abstractmethod
    def run(self, work: Work) -> "list[Outcome]":
        """Run what is not done yet and return what became of each task, in their order.

        A cell that fails ends only itself and those that need it. Raises Interrupted when the user asked to stop,
        once all that runs is saved; WriteError when the folder of results cannot be written.
        """
