"""A rehearsal runs all that a grid has, on stand-ins, and its records are never taken for real ones."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.data import Split, dataset_facts, datasets, load_dataset
from bench.data.sampler import total_steps
from bench.grid.cell import Cell
from bench.grid.expand import expand, rehearsed
from bench.grid.load import GRIDS
from bench.plan.graph import plan
from bench.plan.load import load_grid
from bench.plan.rehearsal import lay_out, obstacles, stage
from bench.report.collect import collect
from bench.store.record import read_records
from priors import find_prior
from priors.untrained import Untrained

GRID = """
backbone: resnet_small
datasets: [cifar10, {name: fashion_mnist, protocol: {input_size: 16, batch_size: 64}}]
budgets: [0.5]
seeds: [3, 4]
arms:
  - {method: byol, budgets: [0.5, 1.0]}
  - {name: trained, method: simclr, rela: {prior: CF10-T}}
  - {name: named, method: byol, rela: {prior: CF10-R20}}
"""
SHIPPED = sorted(path.stem for path in GRIDS.glob("*.yaml") if path.stem != "paper_toy")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GRID)
    return path


def bench(tmp_path: Path, *arguments: str | Path) -> Any:
    paths = ["--results", tmp_path / "results"]
    return CliRunner().invoke(app, list(map(str, [*arguments, *paths])))


def what(cell: Cell) -> tuple[str, str, float]:
    return cell.dataset, cell.arm, cell.budget


@pytest.mark.parametrize("name", SHIPPED)
def test_a_rehearsal_has_each_cell_of_a_seed_and_a_handful_of_steps(name: str) -> None:
    real = load_grid(name)
    short = rehearsed(real)
    cells = expand(short)
    of_a_seed = [cell for cell in expand(real) if cell.validation or cell.seed == real.seeds[0]]
    assert Counter(map(what, cells)) == Counter(map(what, of_a_seed))
    sizes = {(cell.dataset, cell.arm): (cell.backbone, cell.protocol.input_size) for cell in expand(real)}
    for cell in cells:
        assert cell.train_images is not None
        held_out = cell.validation.count(cell.train_images) if cell.validation else 0
        steps = total_steps(cell, cell.train_images - held_out)
        assert steps == 2 or (cell.tuned and steps <= 4)  # whose trials have fewer images, but a whole batch
        assert (cell.backbone, cell.protocol.input_size) == sizes[cell.dataset, cell.arm]
    assert short.name == f"{name}@rehearsal"
    assert short.title.startswith("REHEARSAL")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar10/train/0009/000029.png"),
        ("cifar100", "cifar100/test/0099/000099.png"),
        ("fashion_mnist", "fashion_mnist/test/0009/000009.png"),
        ("tiny_imagenet", "tiny_imagenet/train/0199/000199.jpg"),
        ("imagenet1k", "imagenet1k/test/0999/000999.jpg"),
    ],
)
def test_a_set_that_is_not_here_has_a_stand_in_of_images(name: str, file: str, tmp_path: Path) -> None:
    cell = expand(load_grid("quickstart"))[0].model_copy(update={"dataset": name, "train_images": 30})
    lay_out([cell], tmp_path / "nothing", tmp_path / "stage")
    assert (tmp_path / "stage" / file).is_file()
    found = load_dataset(name, Paths(tmp_path / "stage", tmp_path, "g"))
    info = datasets.get(name)(name)
    assert found.classes == info.classes
    assert len(found.train) == max(30, found.classes)
    assert set(found.test.labels) == set(range(found.classes))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_what_is_written_is_what_is_read(name: str, tmp_path: Path) -> None:
    info = datasets.get(name)(name)
    assert info.classes is not None
    draw = np.random.default_rng(1)
    size = info.image_size
    pixels = draw.integers(0, 256, (2, 130, 1, size, size), dtype=np.uint8).repeat(3, axis=2)
    if name != "fashion_mnist":
        pixels[:, :, 0] = 255 - pixels[:, :, 0]
    train, test = (Split(part, np.arange(130, dtype=np.int64) % info.classes) for part in pixels)
    info.write(tmp_path, train, test)
    for one, other in zip(info.read(tmp_path), (train, test), strict=True):
        order = np.argsort(other.labels, kind="stable")  # by folders
        assert np.array_equal(np.asarray(one.images), np.asarray(other.images)[order])
        assert np.array_equal(one.labels, other.labels[order])


def test_a_set_that_is_here_is_used(tmp_path: Path) -> None:
    for split, grey in (("train", 10), ("train", 20), ("test", 30)):
        folder = tmp_path / "data" / "mine" / split / "one"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(folder / f"{grey}.png")
    (tmp_path / "data" / "loop").symlink_to("loop")  # which concerns nobody
    cell = expand(load_grid("quickstart"))[0].model_copy(update={"dataset": "mine", "train_images": 2})
    lay_out([cell], tmp_path / "data", tmp_path / "stage")
    lay_out([cell], tmp_path / "data", tmp_path / "stage")
    assert (tmp_path / "data" / "mine" / "train" / "one" / "10.png").is_file(), "only the link to it went"
    real, staged = (dataset_facts("mine", Paths(tmp_path / at, tmp_path, "g")).digest for at in ("data", "stage"))
    assert real == staged
    with pytest.raises(UserError, match="unknown dataset 'other'"):
        lay_out([cell.model_copy(update={"dataset": "other"})], tmp_path / "data", tmp_path / "stage")


@pytest.mark.slow
def test_a_rehearsal_runs_every_cell_and_says_which_would_fail(grid: Path, tmp_path: Path) -> None:
    ran = bench(tmp_path, "run", "--grid", grid, "--rehearse", "--data-root", tmp_path / "nothing")
    assert ran.exit_code == 0, ran.output
    assert "REHEARSAL: 8 of 8 cells done" in ran.output
    assert "8 of 16 cells would fail: dataset 'cifar10' is not there" in ran.output
    assert "fashion_mnist named 50% seed 4" in ran.output
    found, _ = read_records(tmp_path / "results" / "mine@rehearsal")
    assert {what(record.cell) for record in found} == {what(cell) for cell in expand(load_grid(str(grid)))}
    assert all(record.rehearsal and record.dataset_title.startswith("REHEARSAL: ") for record in found)
    named = next(record for record in found if record.cell.arm == "named")
    assert named.switch_step is not None, "both phases are rehearsed"
    again = bench(tmp_path, "run", "--grid", grid, "--rehearse", "--data-root", tmp_path / "nothing")
    assert "8 of 8 cells done (8 before)" in again.output


def test_a_rehearsals_records_are_marked_everywhere_and_enter_no_real_report(grid: Path, tmp_path: Path) -> None:
    only = ["--only", "dataset=fashion_mnist,arm=byol"]
    assert bench(tmp_path, "run", "--grid", grid, "--rehearse", *only, "--data-root", tmp_path / "no").exit_code == 0
    reports = ["--reports", tmp_path / "reports"]
    said = bench(tmp_path, "report", f"{grid}@rehearsal", *reports)
    assert said.exit_code == 0, said.output
    assert "REHEARSAL" in said.output
    for name in ("report.md", "table.csv", "points.csv", "table.tex", "accuracy_vs_steps.svg"):
        assert "REHEARSAL" in (tmp_path / "reports" / "mine@rehearsal" / name).read_text(), name
    # Even under the real grid's name, and with settings that are the rehearsal's own.
    shutil.copytree(tmp_path / "results" / "mine@rehearsal", tmp_path / "results" / "mine")
    assert "no record of grid mine" in str(bench(tmp_path, "report", grid, *reports).exception)
    with pytest.raises(UserError, match="no record of grid mine"):
        collect(rehearsed(load_grid(str(grid))).model_copy(update={"name": "mine"}), tmp_path / "results" / "mine")


def test_obstacles_name_the_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths(tmp_path / "data", tmp_path / "results", "quickstart")
    cells = expand(load_grid("quickstart"))
    tasks = plan(cells, cells, paths, "grid quickstart")
    assert obstacles(tasks, paths) == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]
    found = obstacles(tasks, paths)
    records, cache = (
        next(reason for reason in found if str(folder) in reason) for folder in (paths.records, paths.cache)
    )
    assert "will be written there and 0.0 GB are free" in records
    assert len(found[records]) == len(tasks)
    # 2,500 images x 96 components x 4 bytes: of the ResNet-20 once, of the random network for each seed.
    assert len(found[cache]) == 4


def test_an_untrained_prior_looks_at_two_images_and_has_features_for_all() -> None:
    cell = expand(load_grid("quickstart"))[0]
    prior = find_prior("rand", cell, Paths(Path(), Path(), "g", rehearsal=True))
    images = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = Untrained(prior, "rand").model().eval()(images)
        expected = prior.model().eval()(images[:2])
    assert not torch.equal(expected[0], expected[1])
    assert torch.equal(found, expected[[0, 1, 0, 1, 0]])


def test_the_stage_is_apart(tmp_path: Path) -> None:
    paths = stage(Paths(tmp_path / "data", tmp_path / "results", "g"), "g@rehearsal")
    assert paths.rehearsal
    assert paths.data.is_relative_to(tmp_path / "results" / "g@rehearsal")
    assert paths.records == tmp_path / "results" / "g@rehearsal"


# What another grid has as well is left out: the datasets of paper_table1 and their loaders, with the same backbones.
PARTS = {"paper_priors": ["--only", "dataset=cifar10"]}


def test_a_part_of_a_grid_is_enough_where_another_one_has_the_rest() -> None:
    table, priors = load_grid("paper_table1"), load_grid("paper_priors")
    assert (table.datasets, table.protocol, table.backbone) == (priors.datasets, priors.protocol, priors.backbone)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_grid_can_be_rehearsed(name: str, tmp_path: Path) -> None:
    part = PARTS.get(name, [])
    nothing = tmp_path / "nothing"
    # One worker, as each of two tests at once has one core.
    ran = bench(tmp_path, "run", "--grid", name, "--rehearse", *part, "--workers", "1", "--data-root", nothing)
    assert ran.exit_code == 0, ran.output
