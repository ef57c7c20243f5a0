"""Archives of data sets that are broken or meant to harm: IDX files, gzipped or not."""

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import UserError
from bench.data.sets.fashion_mnist import MAX_IDX, read_idx


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_file_is_read_or_refused(fuzz, zipped: bool) -> None:
    path = fuzz.place / "x-idx3-ubyte"
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    whole = bytes([0, 0, 8, 3]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
    pieces = (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1", b"\x1f\x8b", b"\0\0\x0d", b"\xff")
    damaged = fuzz.damaged(whole, pieces, 20)

    def reads(content: bytes) -> bool:
        path.write_bytes(gzip.compress(content) if zipped and content[:1] != b"\xff" else content)
        found = read_idx(path)
        assert found.ndim == content[3]
        assert found.size == len(content) - 4 - 4 * content[3]
        return True

    fuzz(damaged, reads, parts=2)


def test_a_gzipped_file_is_not_unfolded_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1]) + bytes(3 * MAX_IDX), 1))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=f"over {MAX_IDX:,} bytes"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_IDX
    finally:
        tracemalloc.stop()
