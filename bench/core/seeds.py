"""Independent random streams from one base seed."""

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for a purpose, stable over processes and machines (unlike Python's `hash`)."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for a purpose; its stream depends on nothing that ran before."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
