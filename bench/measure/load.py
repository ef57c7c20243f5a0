"""How much of a cell's time other work on the machine took: other processes, other guests, a quota, a stop.

It is not known where /proc does not tell it (not on Linux), nor on a GPU whose driver does not name its processes.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml
import torch

from bench.core.distributed import world_size
from bench.core.environment import usable_cores

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Reading:
    """What the machine's counters say, in seconds.

    Args:
        wall: of any clock.
        busy: busy seconds of the cell's cores, summed, including time that the hypervisor gave to other guests.
        own: of CPU time that the cell's processes had.
        held: seconds for which a quota stopped processes of the cell's control group, summed.
        cores: that the cell may use.
        shared_gpu: whether other processes are on the GPU.
    """

    wall: float
    busy: float
    own: float
    held: float
    cores: int
    shared_gpu: bool = False


def taken(before: Reading | None, after: Reading | None) -> float | None:
    """Return the seconds between two readings that other work took, None where one is missing.

    The largest of three: what others had of the cores, and a quota kept back, as a share of all cores; the time in
    which the cell's processes had less than one core, for they were stopped or waited; all, where the GPU was shared.
    """
    if before is None or after is None:
        return None
    wall, own = after.wall - before.wall, after.own - before.own
    others = after.busy - before.busy - own + after.held - before.held
    shared = wall if before.shared_gpu or after.shared_gpu else 0.0
    return min(wall, max(others / after.cores, wall - own, shared, 0.0))


def load_reader(device: torch.device) -> Callable[[], Reading | None]:
    """Return what reads the counters for a cell on the device; it reads None where they are not there."""
    root = os.getppid() if world_size() > 1 else os.getpid()  # torchrun is the parent of all processes of a cell here
    if device.type == "cuda":
        torch.zeros(1, device=device)  # from now on the driver lists this process

    def read() -> Reading | None:
        try:
            cores = usable_cores()
            busy, own = busy_seconds(cores), cpu_seconds(root)
            shared = _shared(device)
        except (OSError, ValueError, pynvml.NVMLError):
            return None
        if busy < own:  # no counters of this machine, whatever they are
            return None
        return Reading(time.perf_counter(), busy, own, held_seconds(), len(cores), shared)

    return read


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process, of its children, and of theirs, those that ended included. Raises OSError."""
    stat = (PROC / str(process) / "stat").read_text().rpartition(") ")[2].split()
    spent = sum(map(int, stat[11:15])) / os.sysconf("SC_CLK_TCK")
    for thread in (PROC / str(process) / "task").iterdir():
        with suppress(OSError):  # it has ended
            for child in (thread / "children").read_text().split():
                with suppress(OSError):
                    spent += cpu_seconds(int(child))
    return spent


def busy_seconds(cores: set[int]) -> float:
    ticks = 0
    for line in (PROC / "stat").read_text().splitlines():
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _waiting, *rest = map(int, fields[:8])
            ticks += user + nice + system + sum(rest)  # of interrupts, and stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def held_seconds() -> float:
    """Return for how long a quota has kept processes of this one's control groups off their cores."""
    held = 0.0
    for folder in _control_groups():
        with suppress(OSError, ValueError):
            stat = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
            held += int(stat.get("throttled_usec", 0)) / 1e6 + int(stat.get("throttled_time", 0)) / 1e9
    return held


def _control_groups() -> Iterator[Path]:
    """Yield the folders of the groups that this process is in, inner ones first; of versions 1 and 2."""
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                root = CGROUPS / "cpu" if controllers else CGROUPS
                inner = root / path.lstrip("/")
                yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def nvml_handle(device: torch.device) -> Any:
    """Return NVML's handle of a GPU. Raises NVMLError."""
    pynvml.nvmlInit()  # counted by NVML: once is as good as often
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def _shared(device: torch.device) -> bool:
    """Return whether another process is on the GPU. Raises NVMLError, and ValueError where not even this one is seen.

    Counted, since a container knows its processes by other numbers.
    """
    if device.type != "cuda":
        return False
    count = len(pynvml.nvmlDeviceGetComputeRunningProcesses(nvml_handle(device)))
    if not count:
        raise ValueError
    return count > 1
