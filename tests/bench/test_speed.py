"""How long things take, `tox -e speed`. By default each runs once, as a test."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.budget import total_steps
from bench.experiment import build_method
from bench.grid import expand, load_grid
from bench.meter import Clock
from bench.outcome import to_run
from bench.places import Places
from bench.plan import Task, plan
from bench.report import write_report
from bench.seeds import generator
from bench.source import Order, Resident
from bench.spec import Cell, cell_id
from bench.store import read_records, record_path
from bench.targets import make_targets
from bench.train import Trainer
from bench.views import augment
from methods import methods
from priors import find_prior
from tests.bench.bare import TARGETS, bare
from tests.bench.ratios import cpu_seconds, ratio
from tests.bench.reference import Images, Reference

CPU = torch.device("cpu")
COUNT = 512
STEPS = {"resnet_small": 4, "resnet20_cifar": 4, "resnet18_cifar": 1}  # of a round
BACKBONES = ["resnet_small", *(pytest.param(name, marks=pytest.mark.slow) for name in list(STEPS)[1:])]
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


def trainer(arm: str, backbone: str, precision: str, source: Resident) -> Trainer:
    """Return what trains an arm of `cifar_small`; its FLOPs are counted and its optimiser's state is there."""
    spec = cell(arm).model_copy(update={"backbone": backbone})
    targets = torch.randn(COUNT, TARGETS) if spec.rela else None
    method = build_method(spec, 32, TARGETS if spec.rela else None, 4).to(memory_format=torch.channels_last)
    protocol = spec.protocol.model_copy(update={"precision": precision})
    made = Trainer(method, source, Order(COUNT, 1.0, 128, 0), targets, protocol, Clock(CPU))
    made.train(1, lambda: None)
    return made


@pytest.mark.benchmark(group="1 to 4 steps of batch 128, 32 px, against Bare", timer=cpu_seconds)
@pytest.mark.parametrize("arm", ["byol", "simclr", "Rand."])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_against_bare(
    arm: str, backbone: str, source: Resident, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Views, loss, optimiser and momentum on top of what no implementation can leave out."""
    steps = STEPS[backbone] if benchmark.enabled else 1
    full = trainer(arm, backbone, "fp32", source)
    method = "rela" if arm == "Rand." else arm
    passes = bare(method, backbone, [torch.randn(128, 3, 32, 32) for _ in range(2)], nullcontext)

    def bare_steps() -> None:
        for _ in range(steps):
            passes()

    ratio(benchmark, lambda: full.train(full.step + steps, lambda: None), bare_steps, "Bare", capsys)
    assert full.step > 1


@pytest.mark.benchmark(group="BYOL, 1 to 4 steps of batch 128, 32 px, against the reference", timer=cpu_seconds)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_against_the_reference(
    backbone: str,
    precision: str,
    workers: int,
    source: Resident,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In fp32 both, or ours in bf16. On few cores, workers and the threads of the network get in each other's way."""
    steps = STEPS[backbone] if benchmark.enabled else 1
    full = trainer("byol", backbone, precision, source)
    reference = Reference(source.images[: 128 * steps], backbone, 128, workers, device=CPU)
    ratio(benchmark, lambda: full.train(full.step + steps, lambda: None), reference.epoch, "the reference", capsys)
    assert math.isfinite(full.loss)


@pytest.mark.benchmark(group="BYOL's two views of 512 images of 32 px, on one core", timer=cpu_seconds)
def test_augmentation_against_lightly(
    source: Resident, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against lightly's transform of PIL images; both without blur."""
    views, draw = [replace(view, blur=0.0) for view in methods.get("byol").views], generator(0, "augmentation")
    images = Images(source.images)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratio(
            benchmark,
            lambda: [augment(part, view, 32, draw) for part in source.images.split(128) for view in views],
            lambda: [images[index] for index in range(COUNT)],
            "lightly",
            capsys,
        )
    finally:
        torch.set_num_threads(threads)


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

    # The first time, methods and datasets are imported.
    assert benchmark.pedantic(everything, rounds=3, warmup_rounds=1) == 10_000 * 110


@pytest.mark.benchmark(group="planning 10,000 cells of which all are done, and finding that")
def test_a_finished_grid(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """Copies of one real record; as a test, 100 of them."""
    seeds = f"seeds={list(range(10_000 if benchmark.enabled else 100))}"
    grid = load_grid("quickstart", settings=[seeds, "arms=[byol]", "budgets=[0.5]"])
    places = Places(tmp_path, tmp_path, grid.name)

    def planned() -> list[Task]:
        cells = expand(grid)
        return plan(cells, cells, places, "quickstart")

    real = next(record for record in read_records(RECORDS)[0] if not record.cell.rela)
    places.records.mkdir()
    for task in planned():
        copy = real.model_copy(update={"cell": task.cell, "inputs": task.inputs, "id": task.id})
        record_path(places.records, task.id).write_text(copy.model_dump_json(indent=1))
    assert benchmark.pedantic(lambda: to_run(planned(), places), rounds=3) == []


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
