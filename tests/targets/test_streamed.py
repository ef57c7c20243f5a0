"""Streamed targets are those made in memory, and those of a run that was killed those of one that was not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from bench.core.errors import UserError
from bench.core.files import atomic_write
from bench.data.loader import LARGE_IMAGES
from bench.measure.clock import Clock
from bench.targets.cache import Targets, load_targets
from bench.targets.reduce import Moments, reduce_features
from bench.targets.rows import MemmapRows, write_rows
from bench.targets.stream import SHARD, stream_targets

CPU = torch.device("cpu")
BATCH, COUNT, WIDTH, ASKED, IN_SHARD = 50, 730, 12, 5, 200  # four shards, the last one of 130 images
FLOPS = 7  # of an image


def features(count: int, dim: int, offset: float = 5.0) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    mixed = torch.randn(count, dim, generator=draw) @ torch.randn(dim, dim, generator=draw)
    return mixed + offset * torch.randn(dim, generator=draw)


def batches_of(given: Tensor, asked: list[int] | None = None) -> Callable[[int], Iterator[tuple[Tensor, int]]]:
    """Return what yields batches; the first image of each one that is made is added to `asked`."""

    def batches(first: int) -> Iterator[tuple[Tensor, int]]:
        for start in range(first, len(given), BATCH):
            if asked is not None:
                asked.append(start)
            part = given[start : start + BATCH]
            yield part, FLOPS * len(part)

    return batches


def make(path: Path, given: Tensor, asked: list[int] | None = None, dim: int = ASKED, shard: int = IN_SHARD) -> Targets:
    return stream_targets(batches_of(given, asked), len(given), dim, path, Clock(CPU), shard=shard)


def values(targets: Targets) -> Tensor:
    return targets.values[torch.arange(len(targets.values))]


def parts(path: Path) -> list[Path]:
    return sorted(path.with_suffix(".shards").glob("*"))


@pytest.mark.parametrize(
    ("count", "dim", "asked", "offset"),
    [(300, 20, 8, 5.0), (300, 20, 64, 5.0), (7_300, 12, 5, 5.0), (3_000, 16, 16, 1e3)],
)
def test_they_are_those_made_in_memory(count: int, dim: int, asked: int, offset: float, tmp_path: Path) -> None:
    given = features(count, dim, offset)
    expected, empty = reduce_features(given, asked)
    found = make(tmp_path / "a.safetensors", given, dim=asked, shard=2500)
    torch.testing.assert_close(values(found), expected, atol=1e-5, rtol=0)
    assert (found.empty, found.values.shape) == (empty, tuple(expected.shape))
    assert (found.cost.images, found.cost.flops) == (count, FLOPS * count)


def test_components_without_variance_are_zero_and_counted(tmp_path: Path) -> None:
    given = features(150, 4)
    flat = torch.cat([given, given[:, :2], torch.full((150, 3), 7.0)], dim=1)  # rank 4 of 9
    found = make(tmp_path / "a.safetensors", flat, dim=9, shard=50)
    assert found.empty == 5
    torch.testing.assert_close(values(found), reduce_features(flat, 9)[0], atol=1e-5, rtol=0)
    constant = make(tmp_path / "b.safetensors", torch.ones(50, 3), dim=3)
    assert constant.empty == 3
    assert torch.equal(values(constant), torch.zeros(50, 3))


def test_the_moments_are_as_good_as_those_of_two_passes() -> None:
    """With a mean that is 100,000 deviations, sums of squares would have no correct digit left in the variance."""
    given = torch.randn(5_000, 6, generator=torch.Generator().manual_seed(0)) + 1e5
    moments = Moments(6, CPU)
    for part in torch.split(given, 333):
        moments.add(part)
    exact = given.double() - given.double().mean(dim=0)
    torch.testing.assert_close(moments.scatter, exact.T @ exact, rtol=1e-10, atol=1e-6)
    torch.testing.assert_close(moments.mean, given.double().mean(dim=0), rtol=1e-15, atol=0)
    assert moments.count == 5_000


def test_the_file_is_one_that_other_code_reads_too(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    found = make(path, features(COUNT, WIDTH))
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "no shard is left"
    assert torch.equal(load_file(path)["targets"], values(found))
    assert path.read_bytes()[8:9] == b"{", "as the format has it"
    in_memory, again = load_targets(path, COUNT), load_targets(path, COUNT, in_file=True)
    assert in_memory is not None
    assert again is not None
    assert torch.equal(in_memory.values, values(again))
    assert (in_memory.empty, in_memory.cost) == (again.empty, again.cost) == (found.empty, found.cost)


def test_rows_are_those_asked_for_in_the_order_given(tmp_path: Path) -> None:
    found = make(tmp_path / "a.safetensors", features(COUNT, WIDTH)).values
    assert isinstance(found, MemmapRows)
    whole = found[torch.arange(COUNT)]
    index = torch.tensor([729, 0, 3, 3])
    assert torch.equal(found[index], whole[index])
    assert found[index].dtype == torch.float32
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    permuted = MemmapRows(found.path, found.shape, CPU, order)
    assert torch.equal(permuted[index], whole[order][index])
    assert len(permuted) == COUNT


# Killed and damaged

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {here!r}]
from test_streamed import BATCH, COUNT, WIDTH, ASKED, IN_SHARD, CPU, batches_of, features
from bench.measure.clock import Clock
from bench.targets.stream import stream_targets

def deadly(first):
    for number, batch in enumerate(batches_of(features(COUNT, WIDTH))(first)):
        if first + number * BATCH == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

def after(images):
    if images == {at}:
        os.kill(os.getpid(), signal.SIGKILL)

stream_targets(deadly, COUNT, ASKED, Path({path!r}), Clock(CPU), after, IN_SHARD)
"""


def kill_at(image: int, path: Path) -> None:
    """Run the making of targets in another process, which is killed at an image."""
    here = Path(__file__).resolve().parent
    text = KILLED.format(root=str(here.parents[1]), here=str(here), at=image, path=str(path))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("image", "whole"), [(50, 0), (450, 2), (600, 3), (730, 4)])
def test_a_run_that_was_killed_goes_on_after_its_last_whole_shard(image: int, whole: int, tmp_path: Path) -> None:
    path, asked = tmp_path / "cut.safetensors", list[int]()
    given = features(COUNT, WIDTH)
    expected = make(tmp_path / "whole.safetensors", given)
    kill_at(image, path)
    assert load_targets(path, COUNT, in_file=True) is None
    left = parts(path)
    assert len(left) == whole
    (path.with_suffix(".shards") / ".half.tmp").write_bytes(b"what an atomic write leaves when it is killed")
    stored = [json.loads(metadata_of(file)["cost"]) for file in left]
    clock = Clock(CPU)
    found = stream_targets(batches_of(given, asked), COUNT, ASKED, path, clock, shard=IN_SHARD)
    assert asked == list(range(whole * IN_SHARD, COUNT, BATCH)), "no image of a whole shard is looked at again"
    assert torch.equal(values(found), values(expected))
    assert (found.cost.flops, found.cost.images, found.empty) == (FLOPS * COUNT, COUNT, expected.empty)
    here = clock.read()["targets"]
    before = sum(cost["seconds"] for cost in stored)
    assert found.cost.seconds <= before + here
    assert found.cost.seconds > before
    assert sum(cost["images"] for cost in stored) == min(whole * IN_SHARD, COUNT)
    assert not path.with_suffix(".shards").exists()


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_what_was_made_before_is_charged_as_its_shard_says(tmp_path: Path) -> None:
    path, given = tmp_path / "a.safetensors", features(COUNT, WIDTH)
    stop_after(2, path, given)
    for file in parts(path):
        metadata = metadata_of(file)
        metadata["cost"] = json.dumps(json.loads(metadata["cost"]) | {"seconds": 1000.0})
        rewrite(file, load_file(file)["features"], metadata)
    clock = Clock(CPU)
    found = stream_targets(batches_of(given), COUNT, ASKED, path, clock, shard=IN_SHARD)
    assert 2000 < found.cost.seconds < 2060
    assert clock.read()["targets"] < 60, "the clock has what this run took"


def test_targets_are_marked_when_any_of_their_shards_was_made_beside_other_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, given = tmp_path / "a.safetensors", features(COUNT, WIDTH)
    monkeypatch.setenv("BENCH_SIDE_BY_SIDE", "3")
    stop_after(1, path, given)
    monkeypatch.delenv("BENCH_SIDE_BY_SIDE")
    assert make(path, given).cost.side_by_side == 3
    assert make(tmp_path / "b.safetensors", given).cost.side_by_side == 1


def test_what_other_work_took_is_of_all_shards_those_of_an_earlier_run_too(tmp_path: Path) -> None:
    path, given = tmp_path / "a.safetensors", features(COUNT, WIDTH)
    stop_after(2, path, given)
    for file in parts(path):
        metadata = metadata_of(file)
        metadata["cost"] = json.dumps(json.loads(metadata["cost"]) | {"seconds": 1e6, "other_load": 0.25})
        rewrite(file, load_file(file)["features"], metadata)
    cost = stream_targets(batches_of(given), COUNT, ASKED, path, Clock(CPU), shard=IN_SHARD).cost
    assert cost.other_load == pytest.approx(0.25, rel=0.01), "what this run took is nothing beside it"


class Stop(Exception):
    pass


def stop_after(shards: int, path: Path, given: Tensor) -> None:
    def after(images: int) -> None:
        if images == shards * IN_SHARD:
            raise Stop

    with pytest.raises(Stop):
        stream_targets(batches_of(given), COUNT, ASKED, path, Clock(CPU), after, IN_SHARD)
    assert len(parts(path)) == shards


def rewrite(file: Path, tensor: Tensor, metadata: dict[str, str]) -> None:
    with atomic_write(file) as out:
        write_rows(out, "features", (len(tensor), tensor.shape[1]), [tensor], lambda: metadata)


def flip_a_bit(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 4
    file.write_bytes(raw)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def narrower(file: Path) -> None:
    """A good shard, but of another prior."""
    tensor = load_file(file)["features"][:, :3].contiguous()
    rewrite(file, tensor, metadata_of(file))


@pytest.mark.parametrize("damage", [flip_a_bit, cut, narrower, lambda file: file.write_bytes(b""), Path.unlink])
def test_a_damaged_shard_is_made_anew_and_no_other(damage: Callable[[Path], object], tmp_path: Path) -> None:
    given, asked = features(COUNT, WIDTH), list[int]()
    expected = make(tmp_path / "whole.safetensors", given)
    path = tmp_path / "a.safetensors"
    stop_after(3, path, given)
    damage(parts(path)[1])
    found = make(path, given, asked)
    assert torch.equal(values(found), values(expected))
    assert asked == [*range(200, 400, BATCH), *range(600, COUNT, BATCH)]
    assert found.cost.flops == FLOPS * COUNT


@pytest.mark.parametrize("damage", [flip_a_bit, cut, lambda file: file.write_bytes(b"")])
def test_damaged_targets_are_not_used(damage: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make(path, features(COUNT, WIDTH))
    assert load_targets(path, COUNT, in_file=True) is not None
    whole = path.read_bytes()
    assert load_targets(path, COUNT + 1, in_file=True) is None, "targets of another number of images"
    path.write_bytes(whole)
    damage(path)
    damaged = path.read_bytes()
    assert load_targets(path, COUNT, in_file=True) is None
    assert not path.exists()
    set_aside = [path.with_name("a.safetensors.damaged"), path.with_name("a.safetensors.damaged.2")]
    assert [file.read_bytes() for file in set_aside] == [whole, damaged], "nothing is lost"
    assert load_targets(tmp_path / "none.safetensors", COUNT, in_file=True) is None


# Room


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    images = 10**15
    with pytest.raises(UserError) as caught:
        stream_targets(batches_of(torch.ones(BATCH, 4)), images, 2, path, Clock(CPU), shard=10**15)
    text = str(caught.value)
    assert str(path.with_suffix(".shards")) in text
    assert f"{4 * images * (4 + 2):,} bytes" in text
    assert "are free; BENCH_CACHE names another folder" in text
    assert parts(path) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="BENCH_CACHE"):
        make(tmp_path / "file" / "a.safetensors", features(BATCH, 3))


def test_a_shard_is_a_whole_number_of_the_sources_batches() -> None:
    assert SHARD % LARGE_IMAGES == 0
