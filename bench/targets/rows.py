"""Rows of a safetensors file that is read where it lies: written a block at a time, gathered a batch at a time."""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

NAME = "targets"
HEADER = 1024  # bytes before the first row: the header is written last, when the digest and the cost are known


class Mapped:
    """The rows float32 (N, k) of a file that `write_rows` wrote; none of them stays in memory.

    Args:
        path: the file.
        device: where rows are sent.
        order: int64 (N,) on the CPU: row i is the file's row order[i].
    """

    def __init__(self, path: Path, device: torch.device | None = None, order: Tensor | None = None) -> None:
        self.path, self.device, self._order = path, device or torch.device("cpu"), order
        with path.open("rb") as file:
            self.shape, offset = _shape(file)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        self._rows = np.frombuffer(self._map, "<f4", self.shape[0] * self.shape[1], offset).reshape(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the rows float32 (B, k) of an index int64 (B,) on the CPU; they are on the device."""
        if self._order is not None:
            index = self._order[index]
        rows = torch.from_numpy(self._rows[index.numpy()])
        self._map.madvise(mmap.MADV_DONTNEED)  # the page cache may keep them; this process does not
        return rows.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else rows

    def to(self, device: torch.device) -> "Mapped":
        """Return the same rows, sent to `device`."""
        return Mapped(self.path, device, self._order)

    def permuted(self, order: Tensor) -> "Mapped":
        """Return the rows in another order, int64 (N,), without copying them."""
        return Mapped(self.path, self.device, order if self._order is None else self._order[order])

    def digest(self) -> str:
        """Return the digest of the rows' bytes, as the file has them now; reads the file, a block at a time."""
        with self.path.open("rb") as file:
            _shape(file)
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_rows(
    file: IO[bytes], shape: tuple[int, int], blocks: Iterable[Tensor], metadata: Callable[[], dict[str, str]]
) -> None:
    """Write blocks float32 (b, k) as the rows of one tensor `targets` (N, k) of a safetensors file.

    Args:
        file: where to; its beginning.
        shape: (N, k).
        blocks: all rows, in order.
        metadata: asked when all rows are written; the digest of their bytes is added to it.
    """
    sha = hashlib.sha256()
    file.write(bytes(HEADER))
    for block in blocks:
        raw = block.cpu().contiguous().numpy().astype("<f4", copy=False)
        sha.update(raw.data)
        file.write(raw.data)
    file.seek(0)
    # What a safetensors file begins with: the length of a JSON object as 8 bytes, and the object, padded.
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0] * shape[1]]}
    text = json.dumps({"__metadata__": metadata() | {"digest": sha.hexdigest()[:16]}, NAME: entry})
    file.write((HEADER - 8).to_bytes(8, "little") + text.encode().ljust(HEADER - 8))


def _shape(file: IO[bytes]) -> tuple[tuple[int, int], int]:
    """Return the shape of the rows and the offset of the first, where the file then stands.

    Raises ValueError when the file holds something else than rows float32 alone, LookupError when it holds none.
    """
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    rows, columns = header[NAME]["shape"]
    if header[NAME]["dtype"] != "F32" or header.keys() - {NAME, "__metadata__"}:
        raise ValueError(f"something else than {NAME} in float32")
    return (rows, columns), 8 + length
