"""How long things take: `pytest tests/bench/test_speed.py --benchmark-enable`. By default each runs once, as a test."""

from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.budget import total_steps
from bench.experiment import build_method
from bench.grid import expand, load_grid
from bench.meter import Clock
from bench.places import Places
from bench.plan import plan
from bench.report import write_report
from bench.seeds import generator
from bench.source import Order, Resident
from bench.spec import Cell, cell_id
from bench.store import read_records
from bench.targets import make_targets
from bench.train import Trainer
from bench.views import View, augment
from methods import methods
from priors import find_prior

CPU = torch.device("cpu")
COUNT = 512
RECORDS = Path(__file__).parent.parent.parent / "results" / "cifar_small"


@pytest.fixture(scope="module")
def source() -> Resident:
    images = torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "speed"))
    return Resident(images, torch.zeros(COUNT, dtype=torch.int64), 32, CPU)


def cell(arm: str) -> Cell:
    cells = expand(
        load_grid("cifar_small", settings=["arms=[byol, simclr, {name: Rand., method: byol, rela: {prior: rand}}]"])
    )
    return next(cell for cell in cells if cell.arm == arm and cell.budget == 0.5)


@pytest.mark.benchmark(group="training step, resnet_small, batch 128, 32 px")
@pytest.mark.parametrize("arm", ["byol", "simclr", "Rand."])
def test_training_step(arm: str, source: Resident, benchmark: BenchmarkFixture) -> None:
    spec = cell(arm)
    targets = torch.randn(COUNT, 128) if spec.rela else None
    method = build_method(spec, 32, 128 if spec.rela else None, 4).to(memory_format=torch.channels_last)
    trainer = Trainer(method, source, Order(COUNT, 1.0, 128, 0), targets, spec.protocol, Clock(CPU))
    trainer.train(1, lambda: None)  # counts FLOPs, fills the optimiser's state
    benchmark.pedantic(lambda: trainer.train(trainer.step + 1, lambda: None), rounds=10, warmup_rounds=1)
    assert trainer.step > 1


@pytest.mark.benchmark(group="augmentation, 256 views of 32 px")
@pytest.mark.parametrize("view", [View(), methods.get("simclr").views[0]], ids=["byol", "simclr with blur"])
def test_augmentation(view: View, source: Resident, benchmark: BenchmarkFixture) -> None:
    draw = generator(0, "augmentation")
    views = benchmark(lambda: augment(source.images[:256], view, 32, draw))
    assert views.shape == (256, 3, 32, 32)


@pytest.mark.benchmark(group="targets of 512 images of 32 px, resnet_small as prior")
def test_targets(source: Resident, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    prior = find_prior("rand", cell("Rand."), Places(tmp_path, tmp_path, "speed"))
    targets = benchmark.pedantic(lambda: make_targets(prior, source, 128, 32, CPU, Clock(CPU)), rounds=3)
    assert targets.values.shape == (COUNT, 128)


@pytest.mark.benchmark(group="planning 10,000 cells")
def test_planning(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    seeds = f"seeds={list(range(10_000))}"
    settings = [seeds, "arms=[byol]", "budgets=[0.5]"]
    places = Places(tmp_path, tmp_path, "speed")

    def everything() -> int:
        cells = expand(load_grid("quickstart", settings=settings))
        tasks = plan(cells, cells, places, "quickstart")
        return sum(total_steps(task.cell, 1437) for task in tasks)

    assert benchmark.pedantic(everything, rounds=1) == 10_000 * 110


@pytest.mark.benchmark(group="report of 10,000 records, with all of its files")
def test_report(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """Copies of one real record; as a test, of 80 of them."""
    seeds = 1250 if benchmark.enabled else 10
    grid = load_grid("cifar_small", settings=[f"seeds={list(range(seeds))}"])
    real = next(record for record in read_records(RECORDS)[0] if record.cell.rela)
    for each in expand(grid):
        inputs = real.inputs.model_copy(update={"prior": real.inputs.prior if each.rela else None})
        copy = real.model_copy(update={"cell": each, "inputs": inputs, "id": cell_id(each, inputs)})
        (tmp_path / f"{copy.id}.json").write_text(copy.model_dump_json())
    text = benchmark.pedantic(lambda: write_report(grid, tmp_path, tmp_path / "out"), rounds=1)
    assert f"{8 * seeds} of {8 * seeds} cells done" in text
    assert (tmp_path / "out" / "index.html").is_file()
