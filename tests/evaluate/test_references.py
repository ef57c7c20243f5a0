"""The untrained backbone and the prior itself, on real digits, against what each gives by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bench.core.paths import Paths
from bench.data import load_dataset
from bench.data.augment import EvalView
from bench.data.images import part_of
from bench.data.loader import open_source
from bench.evaluate.features import Features, extract
from bench.evaluate.score import score
from bench.grid.cell import Cell
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.models.backbones import build_backbone
from bench.models.weights import save_weights
from bench.plan.graph import Task, plan
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.store.record import Finished, References, read_record, record_path
from methods.build import build_method

GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 100}]
seeds: [3]
budgets: [0.5]
arms:
  - byol
  - {name: random, method: byol, rela: {prior: rand}}
  - {name: public, method: simclr, rela: {prior: "file:net.safetensors", backbone: resnet20_cifar, input_size: 16}}
protocol: {epochs: 1, batch_size: 32, input_size: 8, blur: false, probe: {epochs: 4}, knn: {k: 5}}
"""
CPU = torch.device("cpu")


def places_in(folder: Path) -> Paths:
    return Paths(data=folder / "data", results=folder / "results", grid="tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid, a prior of random weights as a file, and all records."""
    folder = tmp_path_factory.mktemp("references")
    (folder / "tiny.yaml").write_text(GRID)
    torch.manual_seed(0)
    save_weights(build_backbone("resnet20_cifar", 16).module, folder / "data" / "priors" / "net.safetensors")
    run(folder)
    return folder


def tasks_of(folder: Path) -> list[Task]:
    cells = expand(load_grid(str(folder / "tiny.yaml")))
    return plan(cells, cells, places_in(folder), "grid tiny")


def run(folder: Path, only: str = "") -> None:
    tasks = [task for task in tasks_of(folder) if task.cell.arm.startswith(only)]
    outcomes = run_tasks(tasks, places_in(folder), CPU, 0, Display())
    assert {outcome.status for outcome in outcomes} == {"done"}


def record(folder: Path, arm: str) -> Finished:
    (task,) = (task for task in tasks_of(folder) if task.cell.arm == arm)
    found = read_record(record_path(places_in(folder).records, task.id))
    assert isinstance(found, Finished)
    return found


def references(folder: Path, arm: str) -> References:
    found = record(folder, arm).references
    assert found
    return found


def features_of(cell: Cell, network: nn.Module, size: int, folder: Path) -> tuple[Features, int]:
    data = part_of(load_dataset("digits", places_in(folder)), cell)
    sources = [open_source(split, 8, CPU, 0) for split in (data.train, data.test)]
    return extract(network.to(memory_format=torch.channels_last), sources[0], sources[1], EvalView(size)), data.classes


def test_the_untrained_backbone_is_the_cells_own_before_its_first_step(folder: Path) -> None:
    cell = record(folder, "byol").cell
    features, classes = features_of(cell, build_method(cell, 8, None, 1).backbone, 8, folder)
    found = references(folder, "byol")
    assert found.untrained == score(features, classes, cell.protocol, seed=3)
    assert found.prior is None
    assert found.untrained == references(folder, "random").untrained == references(folder, "public").untrained
    assert record(folder, "byol").curve[-1].score != found.untrained


def test_the_prior_is_judged_on_images_of_its_own_size_by_the_same_probe(folder: Path) -> None:
    cell = record(folder, "public").cell
    task = next(task for task in tasks_of(folder) if task.cell.arm == "public")
    assert task.prior
    features, classes = features_of(cell, task.prior.model(), 16, folder)
    assert features.train.shape == (100, 64)
    assert references(folder, "public").prior == score(features, classes, cell.protocol, seed=0)
    random = references(folder, "random")
    assert random.prior == random.untrained, "a random prior is the untrained network"


def test_each_is_evaluated_once_and_a_damaged_one_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = places_in(folder)
    kept = sorted((paths.cache / "references").glob("*.safetensors"))
    assert len(kept) == 2, "of three cells"
    before = references(folder, "public")
    written = [path.stat().st_mtime_ns for path in kept]
    for path in paths.records.glob("*.json"):
        path.unlink()
    run(folder)
    assert [path.stat().st_mtime_ns for path in kept] == written
    assert references(folder, "public") == before
    kept[0].write_bytes(kept[0].read_bytes().replace(b"0.", b"9.", 1))
    kept[1].write_bytes(kept[1].read_bytes()[:100])
    record_path(paths.records, record(folder, "public").id).unlink()
    run(folder, "public")
    assert references(folder, "public") == before
    assert capsys.readouterr().err.count("a damaged score of a reference") == 2
    assert all(path.stat().st_mtime_ns > then for path, then in zip(kept, written, strict=True))


def test_no_training_is_charged_with_them(folder: Path) -> None:
    """Steps and FLOP are the training's own, and all time outside is told as evaluation."""
    ledger = record(folder, "byol").ledger
    assert ledger
    assert ledger.steps == 1
    point = record(folder, "byol").curve[-1]
    assert (ledger.flops, ledger.seconds["train"]) == (point.flops, point.seconds)
    assert ledger.targets is None
    assert sum(ledger.seconds.values()) == pytest.approx(ledger.wall_seconds, rel=0.02)
    assert ledger.seconds["eval"] > 0
