"""How long things take, `tox -e speed`. With the slow tests each runs once, as a test."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.core.device import threads
from bench.core.paths import Paths
from bench.core.seeds import generator
from bench.data.augment import augment
from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler, total_steps
from bench.grid.cell import Cell, cell_id
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.plan.graph import Task, plan
from bench.plan.state import to_run
from bench.report import write_report
from bench.store.record import read_records, record_path
from bench.targets.make import make_targets
from bench.train.loop import Trainer
from methods import methods
from methods.build import build_method
from priors import find_prior
from tests.speed.bare import TARGETS, bare
from tests.speed.ratios import cpu_seconds, gpu_seconds, ratio
from tests.speed.reference import Images, Reference

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
GPU = torch.cuda.is_available()
DEVICE, TIMER = (torch.device("cuda"), gpu_seconds) if GPU else (CPU, cpu_seconds)
# A GPU gets as many images as the paper has: where an epoch ends, the loss is looked at.
COUNT, BATCHES, WORKERS = (50_000, [128, 512], [8]) if GPU else (512, [128], [0, 2])
PRECISION, COMPILE = ("bf16", "reduce-overhead") if GPU else ("fp32", "default")
STEPS = {"resnet_small": 4, "resnet20_cifar": 4, "resnet18_cifar": 1}  # of a round, on a CPU
BACKBONES = ["resnet_small", *(pytest.param(name, marks=pytest.mark.slow) for name in list(STEPS)[1:])]
RECORDS = Path(__file__).parent.parent.parent / "results" / "cifar_small"


@pytest.fixture(scope="module")
def source() -> InMemoryLoader:
    return random_images(COUNT, DEVICE)


def random_images(count: int, device: torch.device) -> InMemoryLoader:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "speed"))
    return InMemoryLoader(images, torch.zeros(count, dtype=torch.int64), 32, device)


def steps_of(backbone: str, benchmark: BenchmarkFixture) -> int:
    """Return how many steps a round has: 1 when nothing is measured."""
    return (20 if GPU else STEPS[backbone]) if benchmark.enabled else 1


def cell(arm: str) -> Cell:
    cells = expand(
        load_grid("cifar_small", settings=["arms=[byol, simclr, {name: Rand., method: byol, rela: {prior: rand}}]"])
    )
    return next(cell for cell in cells if cell.arm == arm and cell.budget == 0.5)


def trainer(
    arm: str, backbone: str, precision: str, source: InMemoryLoader, batch: int = 128, mode: str | None = None
) -> Trainer:
    """Return what trains an arm of `cifar_small`; its FLOPs are counted and its optimiser's state is there."""
    spec = cell(arm).model_copy(update={"backbone": backbone})
    targets = torch.randn(COUNT, TARGETS, device=DEVICE) if spec.rela else None
    method = build_method(spec, 32, TARGETS if spec.rela else None, 4).to(DEVICE).to(memory_format=torch.channels_last)
    protocol = spec.protocol.model_copy(update={"precision": precision, "compile": mode})
    made = Trainer(method, source, Sampler(COUNT, 1.0, batch, 0), targets, protocol, Clock(DEVICE))
    made.train(1, lambda: None)
    return made


@pytest.mark.benchmark(group="steps of 32 px, against Bare", timer=TIMER)
@pytest.mark.parametrize("arm", ["byol", "simclr", "Rand."])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_against_bare(
    arm: str,
    batch: int,
    backbone: str,
    source: InMemoryLoader,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Views, loss, optimiser and momentum on top of what no implementation can leave out."""
    steps = steps_of(backbone, benchmark)
    full = trainer(arm, backbone, PRECISION, source, batch)
    method = "rela" if arm == "Rand." else arm
    views = [torch.randn(batch, 3, 32, 32, device=DEVICE) for _ in range(2)]
    passes = bare(method, backbone, views, lambda: torch.autocast("cuda", torch.bfloat16, enabled=GPU))

    def bare_steps() -> None:
        for _ in range(steps):
            passes()

    ratio(benchmark, lambda: full.train(full.step + steps, lambda: None), bare_steps, "Bare", capsys)
    assert full.step > 1


@pytest.mark.slow
@pytest.mark.benchmark(group="steps of BYOL at 32 px that are compiled, against those that are not", timer=TIMER)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("backbone", list(STEPS))
def test_a_compiled_step(
    batch: int, backbone: str, source: InMemoryLoader, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = steps_of(backbone, benchmark)
    plain, compiled = (trainer("byol", backbone, PRECISION, source, batch, mode) for mode in (None, COMPILE))

    def take(which: Trainer) -> None:
        which.train(which.step + steps, lambda: None)

    ratio(benchmark, lambda: take(compiled), lambda: take(plain), "eager", capsys)
    assert math.isfinite(compiled.loss)


@pytest.mark.slow
@pytest.mark.benchmark(group="steps of BYOL, batch 128, 32 px, against the reference", timer=TIMER)
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_against_the_reference(
    backbone: str,
    precision: str,
    workers: int,
    source: InMemoryLoader,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In fp32 both, or ours in bf16. On few cores, workers and the threads of the network get in each other's way."""
    steps = steps_of(backbone, benchmark)
    full = trainer("byol", backbone, precision, source)
    reference = Reference(source.images[: 128 * steps], backbone, 128, workers, DEVICE)
    ratio(benchmark, lambda: full.train(full.step + steps, lambda: None), reference.epoch, "the reference", capsys)
    assert math.isfinite(full.loss)


@pytest.mark.benchmark(group="BYOL's two views of 512 images of 32 px, on one core", timer=cpu_seconds)
def test_augmentation_against_lightly(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """Against lightly's transform of PIL images; both without blur."""
    views, draw = [replace(view, blur=0.0) for view in methods.get("byol").views], generator(0, "augmentation")
    few = random_images(512, CPU).images
    images = Images(few)
    with threads(1):
        ratio(
            benchmark,
            lambda: [augment([part] * len(views), views, 32, draw) for part in few.split(128)],
            lambda: [images[index] for index in range(len(few))],
            "lightly",
            capsys,
        )


@pytest.mark.benchmark(group="targets of 512 images of 32 px, resnet_small as prior")
def test_targets(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    source = random_images(512, CPU)
    prior = find_prior("rand", cell("Rand."), Paths(tmp_path, tmp_path, "speed"))
    targets = benchmark.pedantic(lambda: make_targets(prior, source, 128, 32, Clock(CPU)), rounds=3)
    assert targets.values.shape == (512, 128)


@pytest.mark.benchmark(group="planning 10,000 cells")
def test_planning(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    seeds = f"seeds={list(range(10_000))}"
    settings = [seeds, "arms=[byol]", "budgets=[0.5]", "claims=[]"]
    paths = Paths(tmp_path, tmp_path, "speed")

    def everything() -> int:
        cells = expand(load_grid("quickstart", settings=settings))
        tasks = plan(cells, cells, paths, "quickstart")
        return sum(total_steps(task.cell, 1437) for task in tasks)

    # The first time, methods and datasets are imported.
    assert benchmark.pedantic(everything, rounds=3, warmup_rounds=1) == 10_000 * 22


@pytest.mark.benchmark(group="planning 10,000 cells of which all are done, and finding that")
def test_a_finished_grid(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """Copies of one real record; as a test, 100 of them."""
    seeds = f"seeds={list(range(10_000 if benchmark.enabled else 100))}"
    grid = load_grid("quickstart", settings=[seeds, "arms=[byol]", "budgets=[0.5]", "claims=[]"])
    paths = Paths(tmp_path, tmp_path, grid.name)

    def planned() -> list[Task]:
        cells = expand(grid)
        return plan(cells, cells, paths, "quickstart")

    real = next(record for record in read_records(RECORDS)[0] if not record.cell.rela)
    paths.records.mkdir()
    for task in planned():
        copy = real.model_copy(update={"cell": task.cell, "inputs": task.inputs, "id": task.id})
        record_path(paths.records, task.id).write_text(copy.model_dump_json(indent=1))
    assert benchmark.pedantic(lambda: to_run(planned(), paths), rounds=3) == []


@pytest.mark.benchmark(group="report of 10,000 records, with all of its files")
def test_report(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """Copies of one real record; as a test, of 90 of them."""
    seeds = 1111 if benchmark.enabled else 10
    grid = load_grid("quickstart", settings=[f"seeds={list(range(seeds))}"])
    real = next(record for record in read_records(RECORDS)[0] if record.cell.rela)
    for each in expand(grid):
        inputs = real.inputs.model_copy(update={"prior": real.inputs.prior if each.rela else None})
        copy = real.model_copy(update={"cell": each, "inputs": inputs, "id": cell_id(each, inputs)})
        (tmp_path / f"{copy.id}.json").write_text(copy.model_dump_json())
    text = benchmark.pedantic(lambda: write_report(grid, tmp_path, tmp_path / "out"), rounds=1)
    assert f"{9 * seeds} of {9 * seeds} cells done" in text
    assert (tmp_path / "out" / "index.html").is_file()
