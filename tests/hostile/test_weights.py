"""Weights from files that are broken or meant to harm: refused, and nothing in them is run or unfolded."""

import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from bench.core.errors import UserError
from bench.models.weights import digest_state, fitting_state, load_weights, read_state

PIECES = (
    *(
        b'"F16"',
        b'"F64"',
        b'"I8"',
        b'"BOOL"',
        b'"F8_E4M3"',
        b'"F4"',
        b'"C64"',
        b"[0]",
        b"[]",
        b"[4,4]",
        b"[-1]",
        b"[1e3]",
    ),
    *(
        b"4611686018427387904",
        b"[0,18446744073709551615]",
        b"null",
        b"{",
        b"}",
        b'"__metadata__":{"a":1},',
        b"\xff" * 8,
    ),
    *(b"cos\nsystem\n", b"(X\x01\x00\x00\x00xtR", b"\x80\x04", b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\0" * 8),
)


class Payload:
    """A pickle of this would create a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def packed(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def repacked(archive: bytes, damage: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of torch's whose pickle went through `damage`: its checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for member in old.infolist():
            content = old.read(member)
            new.writestr(member.filename, damage(content) if member.filename.endswith(".pkl") else content)
    return file.getvalue()


STATE = network().state_dict()
STORED = {
    "safetensors": save(STATE),
    "zip": packed(STATE),
    "old": packed(STATE, _use_new_zipfile_serialization=False),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle", "old"])
def test_weights_are_loaded_whole_or_refused(fuzz, kind: str) -> None:
    path = fuzz.place / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "pickle":
        with zipfile.ZipFile(io.BytesIO(STORED["zip"])) as archive:
            inner = next(archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
        contents = fuzz.damaged(inner, PIECES).map(lambda changed: repacked(STORED["zip"], lambda _: changed))
    else:
        head = 700 if kind != "zip" else None
        contents = fuzz.damaged(STORED[kind], PIECES, head)

    def reads(content: bytes) -> bool:
        path.write_bytes(content)
        module = network()
        load_weights(module, path)
        assert all(value.isfinite().all() for value in module.state_dict().values())
        assert len(digest_state(read_state(path))) == 64
        return True

    fuzz(contents, reads, parts=4)


def tensors() -> st.SearchStrategy[Any]:
    """Values that torch can save: tensors of any kind, and what is none."""
    made: list[Any] = [
        *(torch.zeros(3, 4), torch.full((3, 4), torch.nan), torch.full((3, 4), torch.inf), torch.zeros(4, 3)),
        *(torch.zeros(3), torch.zeros(()), torch.zeros(0), torch.zeros(3, 4, dtype=torch.int64)),
        *(torch.zeros(3, 4, dtype=torch.complex64), torch.zeros(3, 4).to(torch.float8_e4m3fn), torch.eye(3, 4) > 0),
        *(torch.zeros(3, 4).to_sparse(), torch.empty(3, 4, device="meta"), torch.zeros(1).expand(10**10)),
        *(torch.zeros(4, 3).T, nn.Parameter(torch.zeros(3, 4)), torch.full((3, 4), 1e300, dtype=torch.float64)),
        *(None, 1, "x", [], {}, {"a": torch.zeros(1)}, [torch.zeros(1)]),
    ]
    return st.sampled_from(made)


@pytest.mark.filterwarnings("ignore")
def test_a_state_dict_of_anything_is_loaded_or_refused(fuzz) -> None:
    path = fuzz.place / "x.pt"
    names = st.sampled_from([*STATE, "x", "fc.weight", "head.0", "", "\ud800", 3, "module.x"])
    changes = st.dictionaries(names, tensors(), max_size=3)
    nest = st.sampled_from([None, None, "state_dict", "model", "x"])

    def reads(given: tuple[dict[Any, Any], list[str], str | None]) -> bool:
        changed, left_out, under = given
        state = {name: value for name, value in (STATE | changed).items() if name not in left_out}
        torch.save({under: state} if under else state, path)
        module = network()
        load_weights(module, path)
        assert all(value.isfinite().all() for value in module.state_dict().values())
        assert len(digest_state(fitting_state(module, path))) == 64
        return True

    fuzz(st.tuples(changes, st.lists(st.sampled_from([*STATE]), max_size=1), nest), reads)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_weights(network(), path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ""])
@pytest.mark.parametrize("form", ["pickle", "zip", "old"])
def test_a_payload_is_not_run(tmp_path: Path, form: str, suffix: str) -> None:
    trap = tmp_path / "trap"
    value = STATE | {"0.bias": Payload(trap)}
    content = pickle.dumps(value) if form == "pickle" else packed(value, _use_new_zipfile_serialization=form == "zip")
    (tmp_path / f"x{suffix}").write_bytes(content)
    refusal(tmp_path / f"x{suffix}")
    assert not trap.exists()
    pickle.loads(pickle.dumps(value))  # the trap itself works
    assert trap.exists()


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**8, 10**12, 2**63, 2**64 - 1])
def test_a_header_of_an_absurd_length(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(4))
    assert "not a readable safetensors file" in refusal(path)


def test_a_shape_that_is_larger_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "not a readable safetensors file" in refusal(path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_not_numbers(tmp_path: Path, value: float, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    state = STATE | {"0.bias": torch.tensor([0.0, value, 0.0])}
    path.write_bytes(packed(state) if suffix == ".pt" else save(state))
    assert "0.bias holds values that are not finite numbers" in refusal(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.ones(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.empty(3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8),
    ],
    ids=["sparse", "csr", "meta", "quantized"],
)
def test_a_tensor_that_is_not_plain(tmp_path: Path, made: Callable[[], torch.Tensor]) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(packed(STATE | {"0.bias": made()}))
    assert "0.bias: not a plain tensor" in refusal(path)


def test_a_compressed_archive_is_not_unfolded(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(repacked(STORED["zip"], lambda same: same))
    load_weights(network(), path)
    path.write_bytes(repacked(STORED["zip"], lambda same: same, zipfile.ZIP_DEFLATED))
    refusal(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty: get it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 9\n",
            "is a pointer of Git LFS, not the weights: `git lfs pull` gets them",
        ),
        (b"<!DOCTYPE html>\n<html></html>", "is a web page, not the weights: get the file by its link for downloads"),
        (b"\n <html lang=en>", "is a web page, not the weights"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page, not the weights"),
        (  # an archive of several disks, by its end, for which zipfile has an error of its own
            b"PK\x03\x04" + struct.pack("<4sLQL4s4H2LH", b"PK\x06\x07", 1, 0, 1, b"PK\x05\x06", *[0] * 7),
            "is cut short, or not a state dict: get it again",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
def test_what_a_download_left_in_place_of_weights_is_named(
    tmp_path: Path, content: bytes, sentence: str, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_a_download_that_was_cut_short_is_to_be_made_again(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pt")
    path.write_bytes(STORED[form][:-50])
    assert re.search("cut short, .*get it again", refusal(path))


def test_names_without_end_take_no_time(tmp_path: Path) -> None:
    """Mappings that share what they hold would be without number, and parts of a name as many as its letters."""
    inner: Any = {"0.weight": torch.ones(1)}
    for _ in range(60):
        inner = {str(index): inner for index in range(60)}
    path = tmp_path / "x.pt"
    torch.save({"a": inner, "." * 300_000: torch.ones(1), ".".join(STATE) * 3000: torch.ones(1)}, path)
    assert "lacks" in refusal(path)
