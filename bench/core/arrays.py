"""Arrays and texts in one safetensors file, verified when they are read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from bench.core.errors import DamagedFile, describe_error
from bench.core.files import atomic_write

SEAL = "sha256"  # what the digest of the texts is called among them; an array's has its name before it


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], texts: Mapping[str, str]) -> None:
    """Write arrays of integers or floats, and texts, atomically. Raises WriteError.

    The bytes are written here because safetensors' own writer holds a second copy of all arrays.
    """
    entries: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        kind = f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
        entries[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    sealed = dict(texts) | {f"{name} {SEAL}": _digest(array) for name, array in arrays.items()}
    header = json.dumps({"__metadata__": sealed | {SEAL: _seal(sealed)}} | entries).encode()
    with atomic_write(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def read_arrays(path: Path, *names: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Return the arrays of these names, and all texts, of a file by `write_arrays`. Raises DamagedFile."""
    try:
        with safe_open(path, framework="numpy") as file:
            texts: dict[str, str] = dict(file.metadata())
            arrays: dict[str, npt.NDArray[Any]] = {name: file.get_tensor(name) for name in names}
        whole = texts.pop(SEAL) == _seal(texts)
        whole = whole and all(texts[f"{name} {SEAL}"] == _digest(array) for name, array in arrays.items())
    except Exception as error:  # numpy and safetensors raise nearly anything on a damaged file
        raise DamagedFile(f"{path}: {describe_error(error)}") from error
    if not whole:
        raise DamagedFile(f"{path}: not what was written")
    return arrays, texts


def _digest(array: npt.NDArray[Any]) -> str:
    sha = hashlib.sha256(f"{array.dtype} {array.shape}\n".encode())
    sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _seal(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
