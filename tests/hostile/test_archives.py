"""Archives of data sets that are broken or meant to harm: CIFAR's pickles, IDX files, gzipped or not."""

import gzip
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import UserError
from bench.data.sets.registered import MAX_IDX, _idx, _unpickle

BATCH = {
    b"batch_label": b"training batch 1 of 5",
    b"labels": [0, 1, 2, 3],
    b"data": np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8),
    b"filenames": [b"a.png", b"b.png", b"c.png", b"d.png"],
}
OPCODES = (
    *(
        b"cos\nmkdir\n(U\x05pwnedtR",
        b"\x8c\x02os\x8c\x05mkdir\x93",
        b"r\xff\xff\xff\x7f",
        b"p99999999\n",
        b"j\xff\xff\xff\xff",
    ),
    *(b"\x8e" + b"\xff" * 8, b"\x8d" + b"\xff" * 7 + b"\x7f", b"2", b"0", b"1", b"(", b"t", b"\x86" * 9, b"2\x86" * 40),
    *(
        b"R",
        b"b",
        b"o",
        b"\x81",
        b"\x92",
        b"s",
        b"u",
        b"a",
        b"e",
        b".",
        b"N",
        b"K\x01",
        b"\x8a\xff" + b"\x7f" * 255,
        b"}",
        b"]",
    ),
    *(
        b"\x82\x01",
        b"Q",
        b"P1\n",
        b"\x91",
        b"\x90",
        b"\x97",
        b"\x98",
        b"\x95" + b"\xff" * 8,
        b"\x80\xff",
        b"I99\n",
        b"F1e999\n",
    ),
)


def packed(protocol: int) -> bytes:
    return pickle.dumps(BATCH, protocol)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_cifar_batch_is_read_or_refused(fuzz, protocol: int) -> None:
    path = fuzz.place / "batch"
    whole = packed(protocol)
    tail = len(whole) - whole.index(b"filenames") + 40

    def reads(content: bytes) -> bool:
        path.write_bytes(content)
        images, labels = _unpickle(path, b"labels", 10)
        assert images.shape == (len(labels), 3072)
        assert images.dtype == np.uint8
        assert all(0 <= label < 10 for label in labels)
        return True

    fuzz(fuzz.damaged(whole, OPCODES, min(200, tail)), reads, parts=3)


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_file_is_read_or_refused(fuzz, zipped: bool) -> None:
    path = fuzz.place / "x-idx3-ubyte"
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    whole = bytes([0, 0, 8, 3]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
    pieces = (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1", b"\x1f\x8b", b"\0\0\x0d", b"\xff")
    damaged = fuzz.damaged(whole, pieces, 20)

    def reads(content: bytes) -> bool:
        path.write_bytes(gzip.compress(content) if zipped and content[:1] != b"\xff" else content)
        found = _idx(path)
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
            _idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_IDX
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # the last of 2 ** 31 places in the memo
        b"}p4000000000\n.",
        b"\x80\x02}K\x01" + b"2\x86" * 40 + b"K\x01s.",  # a key that takes 2 ** 40 steps to hash
        b"\x80\x02}(K\x01" + b"2\x86" * 40 + b"K\x01u.",
        b"(K\x01" + b"2\x86" * 40 + b"K\x01d.",
        b"\x80\x04\x8f(K\x01" + b"2\x86" * 40 + b"\x90.",
        b"\x80\x04(K\x01" + b"2\x86" * 40 + b"\x91.",
        b"\x80\x04\x8e" + b"\xff" * 5 + b"\0\0\0.",  # a terabyte of bytes
    ],
)
def test_a_pickle_that_asks_for_more_than_it_is_long(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "batch").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="not a readable CIFAR batch"):
            _unpickle(tmp_path / "batch", b"labels", 10)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
