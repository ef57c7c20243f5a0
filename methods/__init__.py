"""Self-supervised methods, one small file each; `base.py` has the contract, `parts.py` what several are built of."""

from bench.core.distributed import gather
from bench.data.augment import View
from methods.accelerator import Accelerator, Around
from methods.base import Batch, Method
from methods.parts import Momentum, Queue
from methods.registry import accelerators, methods

__all__ = ["Accelerator", "Around", "Batch", "Method", "Momentum", "Queue", "View", "accelerators", "gather", "methods"]
