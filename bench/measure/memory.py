"""How much memory is in use, and what is said when it does not suffice: which batch would have fitted."""

import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from bench.core.errors import OutOfMemory, describe_error

# What torch, CUDA, cuBLAS and cuDNN say, in errors that are no OutOfMemoryError.
SAID = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory does not suffice, the GPU's or the host's."""
    said = isinstance(error, RuntimeError) and any(words in describe_error(error) for words in SAID)
    return said or isinstance(error, OutOfMemory | MemoryError | torch.OutOfMemoryError)


@contextmanager
def memory_for(doing: str, device: torch.device, batch: int | None = None, before: int | None = None) -> Iterator[None]:
    """Raise OutOfMemory, with a sentence, where memory does not suffice for what is done inside."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(sentence(error, device, doing, batch, before)) from error
        raise


def release(device: torch.device) -> None:
    """Give back to the GPU what a cell has left: blocks kept for reuse, and pools of CUDA graphs."""
    if device.type == "cuda":
        if "torch._inductor.cudagraph_trees" in sys.modules:  # to reset the compiler is to import it, seconds long
            torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def memory_in_use(device: torch.device) -> int | None:
    """Return the bytes that tensors take on a GPU now, or that this process takes on the host (Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes since the reset: of the GPU's allocator, or resident in this process (Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return None


def sentence(error: BaseException, device: torch.device, doing: str, batch: int | None, before: int | None) -> str:
    """Return what to say of an error for lack of memory.

    Args:
        error: what was raised.
        device: where.
        doing: what the cell was doing.
        batch: images of a training step, when it was one.
        before: bytes in use before the first step.
    """
    peak, asked, total = peak_memory(device), _asked(str(error)), total_memory(device)
    if peak is None:
        return f"out of memory while {doing}"
    text = f"out of memory while {doing}: the peak was {_gb(peak)}"
    if asked:
        text += f", {_gb(asked)} more were asked for"
    if batch is None or before is None or total is None or peak + asked <= before:
        return text
    # All beyond what was there before the first step grows with the batch; the step would have wanted still more.
    fits = min(batch - 1, int(batch * max(total - before, 0) / (peak + asked - before)))
    return f"{text}; an estimate from that: of {batch} images at most {fits} fit"


def _asked(message: str) -> int:
    """Return the bytes of the allocation that failed, as torch tells them; 0 when it does not."""
    match = re.search(r"[Tt]ried to allocate ([\d.]+) (\w+)", message)
    return int(float(match[1]) * UNITS.get(match[2], 0)) if match else 0


def total_memory(device: torch.device) -> int | None:
    """Return the bytes that this process could take at most."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
