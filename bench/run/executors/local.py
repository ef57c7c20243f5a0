"""On this machine: the cells one after the other in this process, or several at a time in processes."""

import os
from collections import Counter
from contextlib import suppress

import torch

from bench.core.device import DeviceLost, find_device
from bench.core.environment import SIDE_BY_SIDE, in_torchrun, launched
from bench.core.errors import UserError
from bench.core.machine import usable_cores
from bench.plan.state import Outcome, to_run
from bench.run.executors import Executor, Resources, Work, executors
from bench.run.executors.processes import Processes, told_display
from bench.run.progress import Display
from bench.run.runner import run_tasks


@executors.register("local")
class Local(Executor):
    """On this machine, one cell after the other; --jobs N or --jobs-per-gpu N at a time."""

    takes = frozenset({"jobs", "jobs_per_gpu"})
    torchrun = True

    def __init__(self, device: str, resources: Resources) -> None:
        super().__init__(device, resources)
        self.found = find_device(device)
        jobs, per_gpu = resources.jobs, resources.jobs_per_gpu
        if jobs is None and per_gpu is None:
            self.environments: list[dict[str, str]] = []
            return
        option = f"--jobs {jobs}" if jobs is not None else f"--jobs-per-gpu {per_gpu}"
        if jobs is not None and per_gpu is not None:
            raise UserError(f"{option} --jobs-per-gpu {per_gpu}: choose one, the first for a CPU")
        if (jobs or per_gpu or 0) < 1:
            raise UserError(f"{option}: must be at least 1")
        if in_torchrun():
            raise UserError(f"{option} runs each cell in one process: leave torchrun out")
        if jobs is not None and self.found.type == "cuda":
            raise UserError(f"{option} is for a CPU: on GPUs, use --jobs-per-gpu N; or choose --device cpu")
        if per_gpu is not None and self.found.type != "cuda":
            raise UserError(f"{option}: torch uses no CUDA device here; on a CPU, use --jobs N")
        if jobs is not None and jobs > cores():
            raise UserError(f"{option}: this process may use {cores()} cores, and cells that share one gain nothing")
        self.environments = cpu_environments(jobs) if jobs else gpu_environments(per_gpu or 1)

    def run(self, work: Work) -> list[Outcome]:
        """Run the cells, in this process when one is to run at a time."""
        pending = to_run(work.tasks, work.places) if len(self.environments) > 1 else []
        if not pending:
            display = told_display() or Display(work.places.mark)
            try:
                return run_tasks(work.tasks, work.places, self.found, work.workers, display, work.limits)
            except DeviceLost:
                if launched():
                    raise
                display.say("  the GPU answers this process no more; another one takes its place")
                pending, self.environments = to_run(work.tasks, work.places), [{}]
        return Processes(work, pending, with_counts(self.environments[: len(pending)])).run()


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
