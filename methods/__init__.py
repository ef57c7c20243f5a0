"""Self-supervised methods, one small file each; `base.py` has the contract, `parts.py` what several are built of."""

from bench.core.distributed import gather
from bench.data.augment import View
from methods.base import Accelerator, Batch, Method
from methods.parts import Momentum, Queue
from methods.registry import accelerators, methods

__all__ = ["Accelerator", "Batch", "Method", "Momentum", "Queue", "View", "accelerators", "gather", "methods"]
