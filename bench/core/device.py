"""Which device this process computes on, on how many threads, and in which precision."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from bench.core.environment import in_torchrun, whole_number
from bench.core.errors import UserError


def find_device(name: str) -> torch.device:
    """Return the device that `--device` names; of several processes of `torchrun`, each has its own GPU.

    On a GPU, fp32 is fp32 from here on: by torch's defaults, convolutions would round to TF32 and products would not.
    Raises UserError on an unknown name, and without the CUDA device that is asked for.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise UserError(f"--device {name}: must be auto, cpu or cuda")
    there = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    torch.backends.cudnn.allow_tf32 = False
    if there and in_torchrun():
        rank, gpus = whole_number("LOCAL_RANK"), torch.cuda.device_count()
        if rank >= gpus:
            raise UserError(f"LOCAL_RANK is {rank}, and torch sees {gpus} GPUs here: start at most {gpus} processes")
        return torch.device("cuda", rank)
    return torch.device("cuda" if there else "cpu")


def is_lost(device: torch.device) -> bool:
    """Return whether the device no longer responds to this process."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let each operation on the CPU take `count` threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Let operations that allow it compute in this precision meanwhile; in fp32 all do."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)
