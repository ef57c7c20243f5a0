"""Self-supervised methods, one small file each; `base.py` has the contract."""

from methods.base import Batch, Method, Momentum, methods

__all__ = ["Batch", "Method", "Momentum", "methods"]
