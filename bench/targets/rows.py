"""Rows in a safetensors file: written a block at a time, verified by one reader, read where they lie."""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.core.errors import DamagedFile

HEADER = 1024  # bytes before the first row: the header is written last, when the digest and the cost are known


class MemmapRows:
    """The rows float32 (N, k) of a file; none of them stays in memory.

    Args:
        path: the file.
        shape: (N, k).
        device: where rows are sent.
        order: int64 (N,) on the CPU: row i is the file's row order[i].
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], device: torch.device | None = None, order: Tensor | None = None
    ) -> None:
        self.path, self.shape, self.device, self._order = path, shape, device or torch.device("cpu"), order
        with path.open("rb") as file:
            first = _first_row(file)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        self._rows = np.frombuffer(self._map, "<f4", shape[0] * shape[1], first).reshape(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the rows float32 (B, k) of an index int64 (B,) on the CPU; they are on the device."""
        if self._order is not None:
            index = self._order[index]
        rows = torch.from_numpy(self._rows[index.numpy()])
        self._map.madvise(mmap.MADV_DONTNEED)  # the page cache may keep them; this process does not
        return rows.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else rows

    def in_memory(self) -> Tensor:
        """Return all rows in their order, on the device."""
        return self[torch.arange(len(self))]


def read_rows(path: Path, name: str, count: int) -> tuple[MemmapRows, dict[str, str]]:
    """Return the rows of the tensor `name` that `write_rows` wrote, and the file's metadata.

    Raises DamagedFile unless the file holds that tensor alone, float32 (count, k), and its bytes have the digest that
    the metadata tell.
    """
    try:
        with safe_open(path, framework="pt") as opened:  # which checks that the file is as long as it says
            metadata, part = opened.metadata(), opened.get_slice(name)
            rows, columns = part.get_shape()
            fits = (part.get_dtype(), rows, list(opened.keys())) == ("F32", count, [name])
        with path.open("rb") as file:
            file.seek(_first_row(file))
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        if fits and digest == metadata["digest"]:
            return MemmapRows(path, (rows, columns)), metadata
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise DamagedFile(f"{path}: {error}") from error
    raise DamagedFile(f"{path}: its rows are not those that were written")


def write_rows(
    file: IO[bytes], name: str, shape: tuple[int, int], blocks: Iterable[Tensor], metadata: Callable[[], dict[str, str]]
) -> None:
    """Write blocks float32 (b, k) as the rows of the one tensor `name` (N, k) of a safetensors file.

    Args:
        file: where to; its beginning.
        name: of the tensor.
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
    text = json.dumps({"__metadata__": metadata() | {"digest": sha.hexdigest()[:16]}, name: entry})
    file.write((HEADER - 8).to_bytes(8, "little") + text.encode().ljust(HEADER - 8))


def _first_row(file: IO[bytes]) -> int:
    """Return where the first row begins: behind the length of the header, 8 bytes, and the header."""
    return 8 + int.from_bytes(file.read(8), "little")
