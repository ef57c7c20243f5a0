"""Self-supervised methods, one small file each; `base.py` has the contract."""

from bench.distributed import gather
from methods.base import Batch, Method, Momentum, Queue, methods

__all__ = ["Batch", "Method", "Momentum", "Queue", "gather", "methods"]
