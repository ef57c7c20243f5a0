"""Cells whose images stream: targets in a file, made in shards; bit by bit the same after a stop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.core.errors import Interrupted
from bench.core.paths import Paths
from bench.data import DatasetInfo, dataset_cache, datasets, load_dataset
from bench.data.augment import EvalView, View
from bench.data.folder import PathList
from bench.data.loader import StreamingLoader
from bench.data.sampler import Sampler, epoch_indices
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.models.weights import read_state
from bench.plan.graph import Task, plan
from bench.store.record import Finished
from bench.targets.cache import load_targets
from bench.targets.make import make_targets
from bench.targets.rows import MemmapRows
from bench.targets.stream import stream_targets
from bench.train.cell import run_cell
from bench.train.keeper import Hooks

CPU = torch.device("cpu")
COUNT = 600
GRID = """
backbone: resnet_small
datasets: [streams]
seeds: [3]
budgets: [0.2]
arms:
  - {name: plain, method: byol, rela: {prior: rand, phase: 0.5}}
  - {name: shuffled, method: byol, rela: {prior: rand, phase: 0.5, shuffle: true}}
protocol: {epochs: 2, batch_size: 24, input_size: 8, blur: false, probe: {epochs: 2}, knn: {k: 5}}
"""


@pytest.fixture(autouse=True)
def _streams(monkeypatch: pytest.MonkeyPatch, temporary: Any) -> Iterator[None]:
    """A dataset that streams."""
    monkeypatch.delenv("BENCH_CACHE", raising=False)
    dataset_cache.clear()

    class Streams(DatasetInfo):
        title, short, streams = "Streams", "STR", True

    temporary(datasets, streams=Streams)
    yield
    dataset_cache.clear()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 600 + 20 images in two classes."""
    found = tmp_path_factory.mktemp("streams")
    draw = np.random.default_rng(0)
    for split, count in (("train", COUNT), ("test", 20)):
        for index in range(count):
            path = found / "streams" / split / f"class{index % 2}" / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (10, 9, 3), dtype=np.uint8)).save(path)
    return found


@pytest.fixture
def tasks(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Task], Paths]:
    return planned(root, tmp_path, monkeypatch)


def planned(root: Path, where: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Task], Paths]:
    monkeypatch.setenv("BENCH_CACHE", str(where / "cache"))
    (where / "streams.yaml").write_text(GRID)
    paths = Paths(root, where / "results", "streams")
    cells = expand(load_grid(str(where / "streams.yaml")))
    return plan(cells, cells, paths, "grid streams"), paths


def run(task: Task, paths: Paths, stop: int | None = None) -> tuple[Finished, list[tuple[str, dict[str, Any]]]]:
    """Run a cell, until `stop` images have targets, and return its record and its events."""
    events: list[tuple[str, dict[str, Any]]] = []

    def stops() -> bool:
        return stop is not None and ("targets", {"images": stop, "of": COUNT}) in events

    watch = Hooks(lambda *_: None, lambda *event: events.append(event), stops)
    return run_cell(task, paths, CPU, 0, watch), events


def test_a_cell_has_its_targets_in_a_file_and_the_next_one_reads_them(tasks: tuple[list[Task], Paths]) -> None:
    (plain, shuffled), paths = tasks
    first, events = run(plain, paths)
    second, later = run(shuffled, paths)
    assert ("targets", {"images": COUNT, "of": COUNT}) in events
    assert [name for name, _ in later if name == "targets"] == []
    assert first.references is not None
    assert first.references.untrained is not None
    assert first.references == second.references, "the untrained backbone, and a random prior, which is the same"
    cost, same = first.ledger.targets, second.ledger.targets
    assert cost is not None
    assert same == cost.model_copy(update={"cached": True})
    assert cost.images == COUNT
    assert cost.flops > 0
    assert cost.seconds == pytest.approx(first.ledger.seconds["targets"], rel=0.2)
    assert sum(first.ledger.seconds.values()) == pytest.approx(first.ledger.wall_seconds, rel=0.02)
    one, other = (read_state(paths.backbone(task.id)) for task in (plain, shuffled))
    assert not all(torch.equal(value, other[name]) for name, value in one.items()), "shuffled targets are others"


def test_a_cell_that_is_stopped_between_two_shards_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.targets.make.stream_targets", in_small_shards)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    (task, _), paths = planned(root, tmp_path / "whole", monkeypatch)
    whole, _ = run(task, paths)
    expected = read_state(paths.backbone(task.id))
    (task, _), paths = planned(root, tmp_path / "cut", monkeypatch)
    with pytest.raises(Interrupted):
        run(task, paths, stop=512)
    resumed, events = run(task, paths)
    assert [facts["images"] for name, facts in events if name == "targets"] == [600]
    found = read_state(paths.backbone(task.id))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert [point.score for point in resumed.curve] == [point.score for point in whole.curve]
    assert resumed.ledger.targets is not None
    assert whole.ledger.targets is not None
    assert resumed.ledger.targets.flops == whole.ledger.targets.flops
    charged, spent = resumed.ledger.targets.seconds, resumed.ledger.seconds["targets"]
    assert charged == pytest.approx(spent, rel=0.2), "the shards made before are charged, in both"


def test_a_cell_that_chooses_no_images_reads_the_targets_of_its_steps_alone(
    tasks: tuple[list[Task], Paths], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of_them(rows: MemmapRows) -> None:
        raise AssertionError(f"{len(rows)} targets were read into memory")

    (plain, shuffled), paths = tasks
    run(plain, paths)  # makes them
    monkeypatch.setattr(MemmapRows, "in_memory", all_of_them)
    run(shuffled, paths)


def in_small_shards(*given: Any, **more: Any) -> Any:
    return stream_targets(*given, **more, shard=256)


def test_the_targets_are_those_that_memory_would_hold(tasks: tuple[list[Task], Paths], root: Path) -> None:
    (task, _), paths = tasks
    run(task, paths)
    (path,) = (paths.cache / "targets").glob("*.safetensors")
    streamed = load_targets(path, COUNT, in_file=True)
    assert streamed is not None
    assert isinstance(streamed.values, MemmapRows)
    assert task.prior is not None
    train = load_dataset("streams", paths).train
    source = StreamingLoader(PathList(train.images), torch.from_numpy(train.labels), 8, CPU, 0)
    in_memory = make_targets(task.prior, source, streamed.values.shape[1], 8, Clock(CPU))
    torch.testing.assert_close(streamed.values[torch.arange(COUNT)], in_memory.values, atol=1e-5, rtol=0)
    assert (streamed.empty, streamed.cost.flops) == (in_memory.empty, in_memory.cost.flops)


def test_plain_images_may_begin_anywhere(root: Path) -> None:
    paths = sorted((root / "streams" / "train").rglob("*.png"))
    for workers in (0, 2):
        source = StreamingLoader(paths, torch.zeros(COUNT), 8, CPU, workers)
        whole = torch.cat(list(source.eval_batches(EvalView(8))))
        assert torch.equal(torch.cat(list(source.eval_batches(EvalView(8), first=256))), whole[256:])


def test_a_plan_of_years_costs_nothing(root: Path) -> None:
    """A list of it would have 10^12 entries; an epoch of the order is redrawn when its first step is due."""
    paths = sorted((root / "streams" / "train").rglob("*.png"))
    order = Sampler(COUNT, 0.1, 20, seed=5)
    assert order.steps_per_epoch == 3
    batches = StreamingLoader(paths, torch.zeros(COUNT), 8, CPU, 0).batches((View(),), order, range(2, 10**12))
    seen = torch.cat([next(batches)[0] for _ in range(4)])
    expected = [epoch_indices(COUNT, 0.1, epoch, 5) for epoch in (0, 1)]
    assert torch.equal(seen, torch.cat([expected[0][40:], expected[1]]))


def test_paths_are_kept_as_they_are(tmp_path: Path) -> None:
    given = [tmp_path / "a b" / "ü.png", tmp_path / "x", Path("relative/\udcff.jpg")]
    found = PathList(given)
    assert list(found) == given
    assert (found[-1], found[0], len(found)) == (given[-1], given[0], 3)
    assert list(found[np.array([2, 0, 2])]) == [given[2], given[0], given[2]]
    assert list(found[1:]) == given[1:]
    assert given[1] in found
    with pytest.raises(IndexError):
        found[3]
    assert list(PathList([])) == []
