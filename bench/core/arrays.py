"""Arrays and texts in one safetensors file, verified when they are read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from bench.core.errors import DamagedFile
from bench.core.files import atomic_write

SEAL = "seal"  # the name of the seal on all texts; that of an array has the array's name behind it


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], texts: Mapping[str, str]) -> None:
    """Write arrays of integers or floats, and texts, atomically. Raises WriteError.

    The bytes are written here because safetensors' own writer holds a second copy of all arrays.
    """
    entries: dict[str, Any] = {}
    sealed, end = dict(texts), 0
    for name, array in arrays.items():
        kind, shape = f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}", list(array.shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + array.nbytes]}
        sealed[f"{SEAL} {name}"] = f"{kind} {shape} {_sha256(array)}"
        end += array.nbytes
    sealed[SEAL] = _seal(sealed)
    header = json.dumps({"__metadata__": sealed} | entries).encode()
    with atomic_write(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def read_arrays(path: Path, *names: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Return the arrays of these names, and all texts, of a file by `write_arrays`. Raises DamagedFile."""
    try:
        with safe_open(path, framework="numpy") as file:
            texts: dict[str, str] = dict(file.metadata() or {})
            if texts.pop(SEAL, None) != _seal(texts):
                raise DamagedFile(f"{path}: its texts are not those that were written")
            return {name: _read(file, name, texts.get(f"{SEAL} {name}", "")) for name in names}, texts
    except (OSError, SafetensorError) as error:
        raise DamagedFile(f"{path}: {error}") from error


def _read(file: Any, name: str, seal: str) -> npt.NDArray[Any]:
    """Return an array of an open file. Raises SafetensorError unless it has the kind, shape and bytes of its seal."""
    entry = file.get_slice(name)
    form = f"{entry.get_dtype()} {entry.get_shape()}"
    if seal.startswith(f"{form} "):  # of another kind, numpy may know none
        array: npt.NDArray[Any] = file.get_tensor(name)
        if seal == f"{form} {_sha256(array)}":
            return array
    raise SafetensorError(f"{name} is not what was written")


def _sha256(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _seal(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
