"""On this machine: cells one after the other, several at a time in runners of their own, or on several GPUs each."""

import os
from collections import Counter
from contextlib import suppress

import torch

from bench.core.device import find_device
from bench.core.environment import NODES, PARENT, SIDE_BY_SIDE, launched, usable_cores, whole_number
from bench.core.errors import DeviceLost, UserError
from bench.plan.graph import Ready
from bench.plan.state import Outcome, to_evaluate, to_run
from bench.run.attempt import Here, Trains
from bench.run.executors import Executor, Resources, Work, executors
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.run.side_by_side import SideBySide
from bench.run.together import Together


@executors.register("local")
class Local(Executor):
    """On this machine, cell after cell; --jobs N at a time on the CPU or on each GPU, or --gpus-per-cell N for each."""

    takes = frozenset({"jobs", "gpus_per_cell"})

    def __init__(self, device: str, resources: Resources) -> None:
        super().__init__(device, resources)
        self.target = find_device(device)
        self.processes, self.nodes = resources.gpus_per_cell or 1, whole_number(NODES) or 1  # of each cell
        self.environments: list[dict[str, str]] = []  # of the runners, where there are to be any
        given = {"--jobs": resources.jobs, "--gpus-per-cell": resources.gpus_per_cell}
        options = [f"{name} {count}" for name, count in given.items() if count is not None]
        if len(options) > 1:
            raise UserError(f"{' '.join(options)}: choose one")
        if any(count is not None and count < 1 for count in given.values()):
            raise UserError(f"{options[0]}: must be at least 1")
        if resources.jobs and self.target.type == "cuda":
            self.environments = gpu_environments(resources.jobs)
        elif resources.jobs:
            if resources.jobs > cores():
                raise UserError(
                    f"{options[0]}: this process may use {cores()} cores, and cells that share one gain nothing"
                )
            self.environments = cpu_environments(resources.jobs)
        elif self.target.type == "cuda" and self.processes // self.nodes > torch.cuda.device_count():
            raise UserError(f"{options[0]}: torch sees {torch.cuda.device_count()} GPUs here")

    def run(self, work: Work) -> list[Outcome]:
        """Run the cells, by this runner when one is to run at a time."""
        pending = _left(work) if len(self.environments) > 1 else []
        if not pending:
            display = Display(work.paths.mark, quiet=PARENT in os.environ)
            limits, workers = work.request.limits(), work.request.workers_for(self.target)
            trains: Trains = Here(work.paths, self.target, workers, limits, display, work.request.track)
            if self.processes > 1:
                threads = _threads(self.processes // self.nodes)
                trains = Together(work.paths, work.request, display, self.processes, self.nodes, threads)
            try:
                return run_tasks(work.tasks, work.paths, self.target, workers, display, limits, trains)
            except DeviceLost:
                if launched():
                    raise
                display.say("  the GPU no longer responds to this process; another one takes over")
                pending, self.environments = _left(work), [{}]
        return SideBySide(work, pending, with_counts(self.environments[: len(pending)])).run()


def _left(work: Work) -> list[Ready]:
    """Return the tasks that have something to train or to evaluate."""
    pending = {task.id for task in to_run(work.tasks, work.paths)}
    ready = [task for task in work.tasks if isinstance(task, Ready)]
    return [task for task in ready if task.id in pending or to_evaluate(task, work.paths)]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(usable_cores())


def cpu_environments(jobs: int) -> list[dict[str, str]]:
    """Return what is set for each of several processes that share the cores."""
    return [_threads(jobs)] * jobs


def gpu_environments(per_gpu: int) -> list[dict[str, str]]:
    """Return what is set for each of several processes on the GPUs that this one may use, one of each GPU first."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    names = names[: torch.cuda.device_count()] * per_gpu  # CUDA ignores names behind one that is no GPU
    return [{"CUDA_VISIBLE_DEVICES": name.strip(), **_threads(len(names))} for name in names]


def with_counts(environments: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the environments, each with how many of them share its device."""
    on = Counter(each.get("CUDA_VISIBLE_DEVICES") for each in environments)
    return [each | {SIDE_BY_SIDE: str(on[each.get("CUDA_VISIBLE_DEVICES")])} for each in environments]


def _threads(processes: int) -> dict[str, str]:
    """Return the settings that give each of several processes its share of the cores, or less where less is set."""
    share = max(1, cores() // processes)
    with suppress(ValueError):
        share = max(1, min(share, int(os.environ.get("OMP_NUM_THREADS") or share)))
    return {"OMP_NUM_THREADS": str(share), "MKL_NUM_THREADS": str(share), "OMP_WAIT_POLICY": "PASSIVE"}
