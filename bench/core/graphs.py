"""CUDA graphs: work that takes the host longer to launch than a GPU to do is recorded once, and launched as one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM = 3  # calls before one is recorded, in which libraries choose their kernels and take their workspaces


class Recorded:
    """Work on tensors of one shape that is recorded on a GPU: its kernels stay the same, and so do a result's bits.

    Nothing that the work decides, draws or keeps on the host happens again after it was recorded. It leaves its
    results in the same memory each time. On a CPU, and for tensors of another shape than the first, it is just called.

    Args:
        work: takes tensors on the device and returns one, or several.
        device: where it works.
    """

    def __init__(self, work: Callable[..., Any], device: torch.device) -> None:
        self.work, self.device = work, device
        self.calls, self.shapes = 0, list[torch.Size]()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs, self.output = list[Tensor](), None

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the work makes of the inputs; once it is recorded, the next call overwrites that."""
        if self.device.type != "cuda":
            return self.work(*inputs)
        shapes = [each.shape for each in inputs]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            return self.work(*inputs)
        if self.calls < WARM:
            self.calls += 1
            return self._warmed(inputs)
        if self.graph is None:
            self._record(inputs)
        assert self.graph
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.output

    def _warmed(self, inputs: tuple[Tensor, ...]) -> Any:
        """Work beside the main stream, which a graph cannot be recorded on, as CUDA's notes on graphs demand."""
        main, beside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(main)
        with torch.cuda.stream(beside):
            output = self.work(*inputs)
        main.wait_stream(beside)
        return output

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [each.clone() for each in inputs]
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: another one may pin memory for the next images meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.output = self.work(*self.inputs)
        self.graph = graph
