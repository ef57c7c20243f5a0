"""Settings of this process that make it faster and change no result."""

import ctypes
import gc
import io
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select
from typing import Any, TextIO

from bench.core.errors import UserError

# What a runner is told by what has started it: the name of the command (or the job of Slurm) that it is part of, by
# `run --jobs` also its parent's process number and how many cells share its device, by Slurm how many nodes it has.
LAUNCH, PARENT, SIDE_BY_SIDE, NODES = "BENCH_LAUNCH", "BENCH_PARENT", "BENCH_SIDE_BY_SIDE", "BENCH_NODES"
CHECKPOINT_SECONDS = "BENCH_CHECKPOINT_SECONDS"
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")

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


class _Dropping(io.FileIO):
    """A file that drops what it cannot write, and says so once unless only its reader has gone."""

    complained = False

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:  # a pipe that does not wait
                select([], [self], [])
        except OSError as error:
            if not (self.complained or isinstance(error, BrokenPipeError)):
                self.complained = True
                with suppress(OSError):
                    os.write(2, f"this output cannot be written ({error.strerror}); the work goes on\n".encode())
            return len(data)
        return count


def keep_talking() -> None:
    """Keep output errors from ending the work: a closed pipe, a closed stream, or characters that it cannot encode.

    Call first: a file that is opened later would get the number of a closed stream, and what is said with it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  # to the end of the process
    if isinstance(sys.stdin, io.TextIOWrapper):
        with suppress(io.UnsupportedOperation):  # of one that was read already
            sys.stdin.reconfigure(errors="backslashreplace")
    if sys.stdout is sys.__stdout__:  # else it is a caller's own
        sys.stdout = _dropping(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _dropping(2, sys.stderr)


def _dropping(number: int, stream: TextIO | None) -> TextIO:
    """Return a stream to the same file, in the same encoding, that never raises."""
    if stream:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Dropping(number, "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )


def own_command() -> list[str]:
    """Return the words that start this program in another process, as this one was started."""
    script = Path(sys.argv[0])
    return [sys.executable, *([str(script.absolute())] if script.name == "rela-bench" else ["-m", "bench"])]


def launched() -> str | None:
    """Return the name of the `run --jobs`, or of the job of Slurm, that started this runner; None if none did."""
    return os.environ.get(LAUNCH)


def side_by_side() -> int:
    """Return how many cells run at a time on the device of this process, its own among them."""
    return whole_number(SIDE_BY_SIDE) or 1


def checkpoint_seconds() -> float:
    """Return the seconds between two checkpoints of a cell: BENCH_CHECKPOINT_SECONDS, or 60. Raises UserError."""
    value = os.environ.get(CHECKPOINT_SECONDS) or "60"
    with suppress(ValueError):
        if 0 <= (seconds := float(value)) < math.inf:
            return seconds
    raise UserError(f"{CHECKPOINT_SECONDS}={value} in the environment is not a number of seconds; unset it")


def in_torchrun() -> bool:
    """Return whether this is one of several processes that `torchrun` has started, which sets all of its variables.

    Raises UserError when they contradict one another.
    """
    if not all(os.environ.get(name) for name in TORCHRUN):
        return False
    rank, local, world, _ = map(whole_number, TORCHRUN[:4])
    if not (local <= rank < world):
        raise UserError(
            f"RANK={rank}, LOCAL_RANK={local} and WORLD_SIZE={world} are no process of torchrun; unset them"
        )
    return world > 1


def whole_number(name: str) -> int:
    """Return a variable of the environment, 0 where it is not there or empty. Raises UserError."""
    value = os.environ.get(name) or "0"
    if not (value.isascii() and value.isdecimal()):
        raise UserError(f"{name}={value} in the environment is not a whole number; unset it")
    return int(value)


def usable_cores() -> set[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def make_deterministic() -> None:
    """Have torch choose algorithms that give equal bits each time, and refuse where it has none.

    Call before CUDA is used: cuBLAS reads its setting once.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def give_back_memory() -> None:
    """Return freed memory to the kernel, gaps between used blocks included; takes milliseconds at most."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def keeping_all() -> Iterator[None]:
    """Pause garbage collection: where most objects are kept, it takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
