"""Settings of this process that make it faster and change no result."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# What `run --jobs` tells each of its processes in their environment; a job of Slurm tells the first of the two.
LAUNCH, SIDE_BY_SIDE = "BENCH_LAUNCH", "BENCH_SIDE_BY_SIDE"

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def tune_process() -> None:
    """Call before torch is imported.

    OpenMP threads that spin while they wait make two busy processes on one machine tens of times slower. And glibc
    hands large buffers back to the kernel at each step, to be mapped and zeroed anew at the next: keeping them makes
    a step of a small network on 2 cores 1.35 times faster.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)


def launched() -> str | None:
    """Return the name of the `run --jobs`, or the job of Slurm, that started this process; None when none did."""
    return os.environ.get(LAUNCH)


def side_by_side() -> int:
    """Return how many cells run at a time on the device of this process, its own among them."""
    return int(os.environ.get(SIDE_BY_SIDE, "1"))


def in_torchrun() -> bool:
    """Return whether this is one of several processes that `torchrun` has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leave_torchrun() -> None:
    """End a process of `torchrun` that is done; any other process goes on.

    Threads that torch's process groups have started may abort the end of the interpreter, which torchrun would take for
    a failure.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def make_deterministic() -> None:
    """Have torch choose algorithms that give equal bits each time, and refuse where it has none.

    Call before CUDA is used: cuBLAS reads its setting once.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def give_back_memory() -> None:
    """Hand to the kernel what was freed since, the gaps between what is in use too: takes milliseconds, at most."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def keeping_all() -> Iterator[None]:
    """Look for no garbage meanwhile: where most of what is made is kept, the search takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
