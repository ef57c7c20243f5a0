"""Files of a run's own making, broken or replaced: caches and checkpoints. What is not whole is made anew."""

import hashlib
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from bench.core.paths import Paths
from bench.data import dataset_cache, dataset_facts, load_dataset
from bench.data.augment import View
from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.grid.cell import Protocol
from bench.measure.clock import Clock
from bench.store.record import Point, Score
from bench.targets.cache import Cost, Targets, load_targets
from bench.targets.stream import Shard
from bench.train.checkpoint import load_checkpoint
from bench.train.loop import Trainer
from methods import Batch, Method

COST = {"seconds": 1.5, "flops": 10**12, "images": 3}
VALUES = torch.arange(6.0).reshape(3, 2)
PIECES = (
    *(
        b'"F16"',
        b'"F64"',
        b'"I8"',
        b'"F4"',
        b"[6]",
        b"[]",
        b"[2,3]",
        b"[0,0]",
        b"[6,1]",
        b"null",
        b"{",
        b"}",
        b'"cost"',
    ),
    *(b"4611686018427387904", b'"x"', b"-1", b"NaN", b"1e400", b'\\"seconds\\"', b"\xff" * 8, b"9" * 5000, b"targets"),
)
LOADERS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: load_targets(path, 3),
    "rows": lambda path: load_targets(path, 3, in_file=True),
    "shard": lambda path: Shard(path, 0, 3).read(),
}


def digest_of(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().data).hexdigest()[:16]


def stored(loader: str, values: Tensor = VALUES, **metadata: str) -> bytes:
    known = {"empty": "0", "cost": json.dumps(COST), "digest": digest_of(values)}
    return save({"features" if loader == "shard" else "targets": values}, known | metadata)


@pytest.mark.parametrize("loader", LOADERS)
def test_targets_are_those_that_were_saved_or_none(fuzz, loader: str) -> None:
    path = fuzz.place / "x.safetensors"

    def reads(content: bytes) -> bool:
        path.write_bytes(content)
        found = LOADERS[loader](path)
        if found is None:
            return False
        cost = found.cost if isinstance(found, Targets) else found[1]
        rows = (found.values if isinstance(found, Targets) else found[0])[torch.arange(3)]
        assert (rows.shape, rows.dtype) == ((3, 2), torch.float32)
        assert torch.equal(rows, VALUES)
        assert cost.model_dump().keys() == {*COST, "joules", "side_by_side", "other_load"}
        assert 0 <= cost.seconds < float("inf")
        return True

    fuzz(fuzz.damaged(stored(loader), PIECES, 300), reads, parts=3)


@pytest.mark.parametrize(
    "metadata",
    [{"cost": '{"seconds": "x", "flops": 1, "images": 1}'}, {"cost": "[]"}, {"cost": "NaN"}, {"empty": "x"}]
    + [{"cost": json.dumps(COST | {key: value})} for key in (*COST, "side_by_side") for value in (-1, None, "1", [])]
    + [{"cost": json.dumps(COST | {"other_load": value})} for value in (-0.1, 1.1, "1", [])],
)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_cost_that_is_none_is_seen_before_the_training(tmp_path: Path, loader: str, metadata: dict[str, str]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(stored(loader))
    assert LOADERS[loader](path) is not None
    path.write_bytes(stored(loader, **metadata))
    assert LOADERS[loader](path) is None or (loader == "shard" and "empty" in metadata)


@pytest.mark.parametrize("values", [torch.zeros(()), torch.zeros(3), torch.zeros(3, 2, 1), torch.zeros(3, 2).half()])
@pytest.mark.parametrize("loader", LOADERS)
def test_other_tensors_are_not_targets(tmp_path: Path, loader: str, values: Tensor) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(stored(loader, values))
    assert LOADERS[loader](path) is None


@pytest.mark.parametrize("shape", [[2**40, 2**20], [3, 2**60], [0, 2**62], [2**64 - 1, 2]])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_huge_shape_takes_no_memory(tmp_path: Path, loader: str, shape: list[int]) -> None:
    path = tmp_path / "x.safetensors"
    name = "features" if loader == "shard" else "targets"
    size = 4 * shape[0] * shape[1]
    metadata = {"empty": "0", "cost": json.dumps(COST), "digest": "0" * 16}
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, name: entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    assert LOADERS[loader](path) is None


def test_a_targets_file_with_more_in_it_is_not_read_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    metadata = {"empty": "0", "cost": json.dumps(COST), "digest": digest_of(VALUES)}
    path.write_bytes(save({"a": torch.ones(6), "targets": VALUES}, metadata))
    assert load_targets(path, 3, in_file=True) is None


# Decoded images


def test_decoded_images_are_those_of_the_files_whatever_the_cache_holds(fuzz) -> None:
    from PIL import Image

    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "ab":
            folder = fuzz.place / "mine" / split / label
            folder.mkdir(parents=True)
            Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / "0.png")
    paths = Paths(fuzz.place, fuzz.place / "results", "g")
    dataset_cache.clear()
    before = load_dataset("mine", paths)
    (path,) = (fuzz.place / "cache" / "datasets").iterdir()
    whole = path.read_bytes()
    pieces = (
        b'"BF16"',
        b'"F8_E4M3"',
        b'"I8"',
        b"[2,3,4,4]",
        b"[0]",
        b"99999999999",
        b'"sha256"',
        b"}",
        b"\xff" * 4,
    )

    def reads(content: bytes) -> bool:
        path.write_bytes(content)
        dataset_cache.clear()
        assert len(dataset_facts("mine", paths).digest) == 16
        dataset_cache.clear()
        found = load_dataset("mine", paths)
        assert found.digest == before.digest
        assert np.array_equal(np.asarray(found.train.images), np.asarray(before.train.images))
        return path.read_bytes() == content

    fuzz(fuzz.damaged(whole, pieces), reads, parts=5)


# Checkpoints


class Tiny(Method):
    views = (View(),)

    def loss(self, batch: Batch) -> Tensor:
        return self.backbone(batch.views[0]).square().mean()


def trainer() -> Trainer:
    torch.manual_seed(0)
    images, labels = torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    device = torch.device("cpu")
    method = Tiny(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), 2)
    protocol = Protocol(epochs=2, batch_size=4, input_size=4)
    source, order = InMemoryLoader(images, labels, 4, device), Sampler(8, 1.0, 4, 0)
    return Trainer(method, source, order, None, protocol, Clock(device))


def checkpoint(**changes: Any) -> dict[str, Any]:
    made = trainer()
    made.train(2, lambda: None)
    point = Point(step=2, images=8, flops=10, seconds=1.0, loss=0.5, score=Score(linear=(0.5,), knn=0.5))
    known = {"id": "me", "seconds": made.clock.read(), "joules": None, "wall": 1.0, "peak": 10**9}
    return known | {"curve": [point.model_dump()], "trainer": made.state()} | changes


def packed(value: Any) -> bytes:
    """A file whose checksums are right, whatever is in it."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def resumes(path: Path, content: bytes) -> bool:
    """Load a file: it gives all that a clock and a record can go on with, or it is set aside."""
    path.write_bytes(content)
    saved = load_checkpoint(path, "me")
    if saved is None:
        assert not path.exists()
        (aside,) = path.parent.glob("checkpoint.pt.*")
        aside.rename(path.parent / "aside")
        return False
    assert all(isinstance(point, Point) for point in saved.curve)
    Clock(torch.device("cpu")).add(saved.seconds, saved.wall, saved.joules)
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bytes", "tree"])
def test_a_checkpoint_is_used_whole_or_not_at_all(fuzz, kind: str) -> None:
    path = fuzz.place / "checkpoint.pt"
    whole = packed(checkpoint())
    if kind == "bytes":
        pieces = (b"PK\x03\x04", b"\x80\x02", b"cos\nsystem\n", b"\xff" * 8)
        fuzz(fuzz.damaged(whole, pieces), lambda content: resumes(path, content), parts=2)
        return
    parts = st.sampled_from(["id", "seconds", "joules", "wall", "peak", "curve", "trainer", "side_by_side"])
    bad = st.one_of(
        st.sampled_from([None, [], {}, [{}], {"x": 1}, torch.zeros(3)]), st.integers(), st.floats(), st.text()
    )
    broken = st.builds(lambda part, value: checkpoint(**{part: value}), parts, bad)
    fuzz(st.one_of(broken, st.builds(checkpoint)).map(packed), lambda content: resumes(path, content), parts=2)


def test_a_checkpoint_that_would_run_something_does_not(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(trap),)

    path = tmp_path / "checkpoint.pt"
    assert not resumes(path, packed(checkpoint(extra=Payload())))
    assert not trap.exists()
    assert (tmp_path / "aside").is_file()


def test_a_cost_comes_back() -> None:
    assert Cost.model_validate_json(json.dumps(COST)).model_dump() == COST | {
        "joules": None,
        "side_by_side": 1,
        "other_load": None,
    }
