"""Two processes that train one cell together do what one does, and survive it when one of them dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.store.record import Finished, read_records
from tests.run.processes import Forks, events

ROOT = Path(__file__).parent.parent.parent
ALONE = [sys.executable]
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 200}]
seeds: [0]
arms:
  - {method: simclr}
  - {name: rela, method: byol, rela: {prior: rand, phase: 0.5}}
protocol: {epochs: 2, batch_size: 32, input_size: 12, evaluate_at: [0.2, 0.5, 0.8], probe: {epochs: 4}, knn: {k: 5}}
"""
KILLER = """
import os, signal
from methods import methods
from methods.byol import BYOL

@methods.register("killer")
class Killer(BYOL):
    steps = 0

    def after_step(self):
        self.steps += 1
        if self.steps == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        super().after_step()
"""


def call(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def run(launcher: list[str], grid: Path, folder: Path, *options: str | Path) -> "subprocess.CompletedProcess[str]":
    places = ["--results", folder / "results", "--data-root", folder / "data"]
    return call(*launcher, "-m", "bench", "run", "--grid", grid, "--device", "cpu", *places, *options)


def records(folder: Path) -> dict[str, Finished]:
    found, damaged = read_records(folder)
    assert not damaged
    return {record.cell.arm: record for record in found}


@pytest.mark.slow
def test_every_method_has_the_same_losses_in_one_process_and_in_two(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for launcher, out in ((ALONE, one), (TOGETHER, two)):
        done = call(*launcher, ROOT / "tests" / "core" / "together.py", out)
        assert done.returncode == 0, done.stderr
    alone, together = (json.loads(path.read_text()) for path in (one, two))
    assert len(alone) == len(together) >= 18
    for name, expected in alone.items():
        assert together[name]["losses"] == pytest.approx(expected["losses"], rel=1e-6), name
        assert together[name]["state"] == pytest.approx(expected["state"], rel=1e-6), name
        assert together[name].get("switch") == pytest.approx(expected.get("switch"), abs=1e-9), name


@pytest.mark.slow
def test_a_grid_runs_in_two_processes_as_in_one(tmp_path: Path) -> None:
    grid = tmp_path / "tiny.yaml"
    grid.write_text(GRID)
    found = []
    for launcher, folder in ((ALONE, tmp_path / "one"), (TOGETHER, tmp_path / "two")):
        done = run(launcher, grid, folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("2 of 2 cells done") == 1, "only the first process talks"
        found.append(records(folder / "results" / "tiny"))
    alone, together = found
    assert {r.provenance["processes"] for r in together.values()} == {2}
    for arm, record in alone.items():
        other = together[arm]
        assert record.id == other.id
        assert (record.ledger.steps, record.ledger.images) == (other.ledger.steps, other.ledger.images)
        assert record.ledger.flops == pytest.approx(other.ledger.flops, rel=0.02)
        assert record.switch_step == other.switch_step
        for point, same in zip(record.curve, other.curve, strict=True):
            assert point.loss == pytest.approx(same.loss, abs=0.02)


@pytest.mark.slow
def test_a_killed_process_fails_its_cell_and_the_grid_goes_on(tmp_path: Path) -> None:
    grid, plugin = tmp_path / "tiny.yaml", tmp_path / "killer.py"
    grid.write_text(GRID.replace("{method: simclr}", "{method: killer}"))
    plugin.write_text(KILLER)
    done = run([*TOGETHER, "--max-restarts", "1"], grid, tmp_path, "--plugin", plugin)
    assert done.returncode != 0
    found = records(tmp_path / "results" / "tiny")
    assert {arm: record.status for arm, record in found.items()} == {"killer": "failed", "rela": "done"}, done.stderr
    assert found["killer"].error == "one of the processes that trained it died"
    assert "1 failed: one of the processes that trained it died" in done.stderr


@pytest.mark.slow
def test_processes_of_torchrun_share_a_grid_with_another_runner(tmp_path: Path, server: Forks) -> None:
    grid = tmp_path / "tiny.yaml"
    grid.write_text(GRID.replace("seeds: [0]", "seeds: [0, 1]"))
    other = server.start(tmp_path, "--checkpoint-seconds", "0")
    done = run(TOGETHER, grid, tmp_path)
    assert done.returncode == server.wait(other) == 0, done.stderr
    assert done.stdout.count("4 of 4 cells done") == (tmp_path / "out").read_text().count("4 of 4 cells done") == 1
    told = {"start", "resume", "interrupted", "done", "failed"}
    logs = [[event["event"] for event in log if event["event"] in told] for log in events(tmp_path).values()]
    assert logs == [["start", "done"]] * 4


def test_a_batch_that_cannot_be_shared_is_one_sentence(tmp_path: Path) -> None:
    from bench.core import distributed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 3)
        with pytest.raises(distributed.UserError, match="a batch of 32 is not a multiple of 3 processes"):
            distributed.rank_slice(32)
