"""Self-supervised methods, one small file each; `base.py` has the contract."""

from bench.core.distributed import gather
from bench.data.augment import View
from methods.base import Batch, Method, Momentum, Queue, methods

__all__ = ["Batch", "Method", "Momentum", "Queue", "View", "gather", "methods"]
