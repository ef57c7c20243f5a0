"""Whole cells on a GPU: every method, accelerator and optimiser, what their records say of the device, resuming, too
little memory."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core.errors import Interrupted
from bench.core.paths import Paths
from bench.evaluate import linear_probe as probe
from bench.grid.expand import expand
from bench.plan.graph import Task, plan
from bench.plan.load import load_grid
from bench.plan.state import Outcome
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.store.record import Finished, read_record, record_path
from bench.train import loop as train
from methods import accelerators, methods
from methods.byol import BYOL
from tests.methods.small import accelerate, backbone_for
from tests.methods.test_conformance import SMALL

DEVICE = torch.device("cuda")
EVERY = [{"method": name, "backbone": backbone_for(name)} for name in methods]
EVERY += [each | {"name": f"{each['method']} + ReLA", "rela": {"prior": "rand", "phase": 0.5}} for each in EVERY]
EVERY += [
    {"name": name, "method": "byol", "backbone": backbone_for(name), "accelerate": accelerate(name)}
    for name in accelerators
]
ARMS = "\n".join(f"  - {json.dumps(arm)}" for arm in EVERY)
GRID = f"""
backbone: resnet_small
datasets: [{{name: digits, train_images: 128}}]
seeds: [0]
arms:
{ARMS}
  - {{name: sgd, method: byol, recipe: {{optimiser: sgd, schedule: cosine, warmup: 0.2, teacher: cosine}}}}
  - {{name: lars, method: byol, recipe: {{optimiser: lars, schedule: cosine, warmup: 0.2, decay_norm_and_bias: false}}}}
params: {json.dumps(SMALL)}
protocol: {{epochs: 2, batch_size: 32, input_size: 12, precision: bf16, probe: {{epochs: 3}}, knn: {{k: 5}}}}
"""
pytestmark = pytest.mark.cuda


def tasks_of(paths: Paths, *settings: str) -> list[Task]:
    path = paths.results.parent / "gpu.yaml"
    path.write_text(GRID)
    cells = expand(load_grid(str(path), settings=settings))
    return plan(cells, cells, paths, "grid gpu")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "data", tmp_path / "results", "gpu")


def run(paths: Paths, *settings: str, display: Display | None = None) -> list[Outcome]:
    return run_tasks(tasks_of(paths, *settings), paths, DEVICE, 0, display or Display())


def recorded(outcome: Outcome, paths: Paths) -> Finished:
    found = read_record(record_path(paths.records, outcome.task.id))
    assert isinstance(found, Finished)
    return found


@contextmanager
def same_bits() -> Iterator[None]:
    """Algorithms that give equal bits each time; cuBLAS's setting comes with the environment."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Stops(Display):
    """Asks for a stop after so many steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def step(self, task: Task, done: int, steps: int, loss: float) -> None:
        if done == self.after:
            raise Interrupted


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_that_went_on_from_a_checkpoint_has_the_bits_of_one_that_was_whole(
    precision: str, tmp_path: Path
) -> None:
    arm = "arms=[{method: moco, rela: {prior: rand, phase: 0.5}}]"
    settings = (arm, f"protocol.precision={precision}", "protocol.epochs=4", "protocol.evaluate_at=[0.5, 1.0]")
    scores = []
    with same_bits():
        for name, stops in (("whole", None), ("resumed", Stops(11))):
            (tmp_path / name).mkdir()
            there = Paths(tmp_path / "data", tmp_path / name / "results", "gpu")
            if stops:
                with pytest.raises(Interrupted):
                    run(there, *settings, display=stops)
            scores.append(learned(recorded(run(there, *settings)[0], there)))
    assert scores[0] == scores[1]


def learned(record: Finished) -> dict[str, object]:
    """What a cell has at its end, whatever it took."""
    return record.curve[-1].model_dump(exclude={"seconds", "joules", "other_load"})


def test_every_method_runs_and_its_record_knows_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And cells whose steps are CUDA graphs have the bits of cells whose steps are not, also while the rate moves."""
    found = []
    for name in ("graphs", "none"):
        (tmp_path / name).mkdir()
        there = Paths(tmp_path / "data", tmp_path / name / "results", "gpu")
        with same_bits():
            outcomes = run(there)
        assert [(outcome.status, outcome.reason) for outcome in outcomes] == [("done", "")] * len(outcomes)
        assert len(outcomes) == 2 * len(list(methods)) + len(list(accelerators)) + 2
        records = [recorded(outcome, there) for outcome in outcomes]
        for record in records:
            assert record.ledger.peak_memory_bytes
            assert record.ledger.joules is None or record.ledger.joules["train"] > 0
            assert record.provenance["gpu"] == torch.cuda.get_device_name(DEVICE)
        found.append({record.cell.arm: learned(record) for record in records})
        for module in (train, probe):
            monkeypatch.setattr(module, "Recorded", lambda work, device: work)
    assert found[0] == found[1]


class Greedy(BYOL):
    """Wants more memory than any GPU has."""

    def after_step(self) -> None:
        torch.empty(10**15, device=DEVICE)


def test_a_cell_without_memory_costs_no_other(paths: Paths, temporary: Any) -> None:
    temporary(methods, greedy=Greedy)
    outcomes = run(paths, "arms=[greedy, simclr]", "params={}")
    assert [outcome.status for outcome in outcomes] == ["oom", "done"]
    assert "GB" in outcomes[0].reason
