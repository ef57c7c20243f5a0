"""Arrays in a file are those that were written, or the file is damaged."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.core.arrays import read_arrays, write_arrays
from bench.core.errors import DamagedFile

ARRAYS = {
    "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "strided": np.arange(20, dtype=np.int64)[::2],
    "floats": np.array([[1.5, -2.0]], dtype=np.float32),
    "empty": np.empty((0, 3), dtype=np.float64),
}


def test_arrays_and_texts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_arrays(path, ARRAYS, {"digest": "0123", "who": "ü"})
    arrays, texts = read_arrays(path, *ARRAYS)
    for found in (arrays, load_file(path)):
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(found[name], array)
    assert (texts["digest"], texts["who"]) == ("0123", "ü")
    assert read_arrays(path, "floats")[0].keys() == {"floats"}


@pytest.mark.parametrize("name", ["other", "sha256", ""])
def test_an_array_that_is_not_there_is_a_damaged_file(tmp_path: Path, name: str) -> None:
    write_arrays(tmp_path / "x", ARRAYS, {})
    with pytest.raises(DamagedFile, match="x: "):
        read_arrays(tmp_path / "x", name)


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_a_file_that_is_not_there_is_a_damaged_one(tmp_path: Path, place: str) -> None:
    with pytest.raises(DamagedFile):
        read_arrays(tmp_path / place)
