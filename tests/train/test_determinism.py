"""The same cell, the same bits: twice, resumed anywhere, with other numbers of threads, under `--deterministic`."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core.device import threads
from bench.core.paths import Paths
from bench.data import load_dataset
from bench.data.augment import View
from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.grid.cell import Cell
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bench.train.loop import Trainer
from methods import methods
from methods.build import build_method
from tests.methods.small import backbone_for, of_its_own

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
NAMES = sorted(methods)
QUICK = {"byol", "moco"}  # the others take as long again
SIZES = dict.fromkeys(("hidden", "prototypes", "outputs", "bottleneck", "queue"), 24)
SIZES |= {"projection": 12, "sub_batch": 16, "queue_after": 0}
GRID = """
backbone: BACKBONE
datasets: [digits]
seeds: [3]
arms: [{method: METHOD}, {name: rela, method: METHOD, rela: {prior: rand, phase: PHASE}}]
params: {METHOD: PARAMS}
protocol: {epochs: 3, batch_size: 16, input_size: 8, precision: fp32}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> InMemoryLoader:
    data = load_dataset("digits", Paths(tmp_path_factory.mktemp("data"), Path("results"), "x")).train
    images = np.asarray(data.images[:32])
    return InMemoryLoader(torch.from_numpy(images), torch.from_numpy(data.labels[:32]), 8, CPU)


def cells(method: str, tmp_path: Path, phase: str = "0.4") -> list[Cell]:
    params = json.dumps(of_its_own(method, SIZES))
    text = GRID.replace("METHOD", method).replace("PARAMS", params).replace("PHASE", phase)
    (tmp_path / "tiny.yaml").write_text(text.replace("BACKBONE", backbone_for(method)))
    return expand(load_grid(str(tmp_path / "tiny.yaml")))


def trainer(cell: Cell, source: InMemoryLoader) -> Trainer:
    targets = torch.randn(32, 5, generator=torch.Generator().manual_seed(0)) if cell.targets_of else None
    method = build_method(cell, 8, 5, 2).to(memory_format=torch.channels_last)
    return Trainer(method, source, Sampler(32, 1.0, 16, 3), targets, cell.protocol, Clock(CPU))


def with_protocol(cell: Cell, **settings: object) -> Cell:
    return cell.model_copy(update={"protocol": cell.protocol.model_copy(update=settings)})


def flat(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from flat(value, f"{name}/{key}")
    elif isinstance(state, list | tuple):
        for key, value in enumerate(state):
            yield from flat(value, f"{name}/{key}")
    else:
        yield name, state


def assert_same(one: Trainer, other: Trainer) -> None:
    """Weights, optimiser, momentum networks, queues, switch, FLOPs: all of the state, bit for bit."""
    ours, theirs = dict(flat(one.state())), dict(flat(other.state()))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, Tensor) else value == theirs[name]
        assert same, name


def assert_resumes(cell: Cell, source: InMemoryLoader, cut_at: int, until: int) -> Trainer:
    """Assert that the state of one step leads to the same bits as no cut; return what was not cut."""
    whole, cut, resumed = (trainer(cell, source) for _ in range(3))
    whole.train(until, lambda: None)
    cut.train(cut_at, lambda: None)
    resumed.restore(cut.state())
    resumed.train(until, lambda: None)
    assert_same(whole, resumed)
    return whole


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_a_method_has_the_same_bits_twice_and_when_it_is_resumed(
    name: str, source: InMemoryLoader, tmp_path: Path
) -> None:
    for cell in cells(name, tmp_path):
        whole, again, cut = (trainer(cell, source) for _ in range(3))
        whole.train(6, lambda: None)
        torch.manual_seed(99)  # what else draws random numbers changes nothing
        again.train(6, lambda: None)
        assert_same(whole, again)
        cut.train(3, lambda: None)
        save_checkpoint(tmp_path / "checkpoint.pt", "a", Checkpoint({}, None, 0.0, None, (), cut.state()))
        found = load_checkpoint(tmp_path / "checkpoint.pt", "a")
        assert found
        assert found.trainer
        resumed = trainer(cell, source)
        resumed.restore(found.trainer)
        resumed.train(6, lambda: None)
        assert_same(whole, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_step_learns_the_same_and_has_its_own_bits_again(
    name: str, source: InMemoryLoader, tmp_path: Path
) -> None:
    for cell in cells(name, tmp_path):
        compiled = with_protocol(cell, compile="default")
        plain, ours = (trainer(with_protocol(each, lr=1e-12), source) for each in (cell, compiled))
        for which in (plain, ours):  # weights stay where they are, so that gradients can be compared
            which.train(4, lambda: None)
        expected, found = (
            torch.cat([state["exp_avg"].flatten() for state in which.optimiser.state.values()])
            for which in (plain, ours)
        )
        # Mostly 1e-5; where rounding takes the input of a ReLU across 0, up to 1e-2.
        assert (found - expected).norm() < 0.02 * expected.norm()
        assert ours.loss == pytest.approx(plain.loss, rel=1e-3)
        assert_resumes(compiled, source, cut_at=3, until=6)


def test_the_adaptive_switch_is_resumed_too(source: InMemoryLoader, tmp_path: Path) -> None:
    cell = cells("byol", tmp_path, "adaptive")[1]
    whole = assert_resumes(cell, source, cut_at=2, until=4)
    assert whole.state()["method"]["switch.fast"] != 1.0


def test_a_checkpoint_of_before_images_were_chosen_is_gone_on_from(source: InMemoryLoader, tmp_path: Path) -> None:
    cell = cells("byol", tmp_path)[0]
    whole, resumed = trainer(cell, source), trainer(cell, source)
    whole.train(2, lambda: None)
    older = copy.deepcopy(whole.state())
    assert older.pop("chosen") is None
    resumed.restore(older)
    for each in (whole, resumed):
        each.train(4, lambda: None)
    assert_same(whole, resumed)


def test_what_a_step_sees_does_not_depend_on_the_number_of_threads(source: InMemoryLoader) -> None:
    seen = []
    for count in (1, 2):
        with threads(count):
            batches = source.batches((View(), View(blur=0.5)), Sampler(32, 0.5, 8, seed=1), range(4))
            seen.append([(index, *views) for index, views in batches])
    for one, other in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


DETERMINISTIC = """
import os, sys
from bench.cli.main import main
try:
    main()
except SystemExit as done:
    assert not done.code
import torch
assert torch.are_deterministic_algorithms_enabled()
assert not torch.backends.cudnn.benchmark
assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
"""


@pytest.mark.slow
def test_every_method_runs_with_deterministic_algorithms_alone(tmp_path: Path) -> None:
    grid = tmp_path / "tiny.yaml"
    params = json.dumps({name: of_its_own(name, SIZES) for name in NAMES})
    arms = json.dumps([{"method": name, "backbone": backbone_for(name)} for name in NAMES])
    grid.write_text(
        """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
arms: [*ARMS, {name: rela, method: byol, rela: {prior: rand, phase: 0.5}}]
params: PARAMS
protocol: {epochs: 2, batch_size: 32, input_size: 8, probe: {epochs: 3}, knn: {k: 5}}
""".replace("PARAMS", params).replace("[*ARMS", arms[:-1])
    )
    words = ["run", "--grid", grid, "--results", tmp_path / "results", "--data-root", tmp_path / "data"]
    command = [sys.executable, "-c", DETERMINISTIC, *map(str, words), "--deterministic"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = [json.loads(path.read_text()) for path in (tmp_path / "results" / "tiny").glob("*.json")]
    assert len(found) == len(NAMES) + 1
    assert all(record["status"] == "done" and record["provenance"]["deterministic"] for record in found)
