"""Two processes that train one cell together do what one does, and the grid survives it when one of them fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.store.record import Finished, Record, read_records
from bench.train.cell import ASK_EVERY
from tests.run.processes import ALWAYS, Forks, events, folder, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TOGETHER = ("--gpus-per-cell", "2")
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 200}]
seeds: [0]
arms:
  - {method: simclr}
  - {name: rela, method: byol, rela: {prior: rand, phase: 0.5}}
protocol: {epochs: 2, batch_size: 32, input_size: 12, evaluate_at: [0.2, 0.5, 0.8], probe: {epochs: 4}, knn: {k: 5}}
"""
FAILS = """
import os, signal
import torch
from methods import methods
from methods.byol import BYOL

@methods.register("fails")
class Fails(BYOL):
    steps = 0

    def after_step(self):
        self.steps += 1
        if self.steps == 3 and os.environ["RANK"] == "1":
            {}
        super().after_step()
"""


def call(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def run(grid: Path, folder: Path, *options: str | Path) -> "subprocess.CompletedProcess[str]":
    paths = ["--results", folder / "results", "--data-root", folder / "data"]
    return call(*ALONE, "-m", "bench", "run", grid, "--device", "cpu", *paths, *options)


def records(folder: Path) -> dict[str, Record]:
    found, damaged = read_records(folder)
    assert not damaged
    return {record.cell.arm: record for record in found}


def processes(of: int) -> list[int]:
    """Return the processes that a process has started, and those that these have."""
    found = [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]
    return found + [each for child in found for each in processes(child)]


def saved(there: Path) -> list[str]:
    """Return the cells that were saved and run on."""
    ends = {"done", "interrupted", "failed"}
    names = {cell: {event["event"] for event in log} for cell, log in events(there).items()}
    return [cell for cell, told in names.items() if "checkpoint" in told and not ends & told]


def test_every_method_and_accelerator_has_the_same_losses_in_one_process_and_in_two(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for launcher, out in ((ALONE, one), (TORCHRUN, two)):
        done = call(*launcher, ROOT / "tests" / "core" / "together.py", out)
        assert done.returncode == 0, done.stderr
    alone, together = (json.loads(path.read_text()) for path in (one, two))
    assert len(alone) == len(together) >= 20
    for name, expected in alone.items():
        assert together[name]["losses"] == pytest.approx(expected["losses"], rel=1e-6), name
        assert together[name]["state"] == pytest.approx(expected["state"], rel=1e-6), name
        assert together[name].get("switch") == pytest.approx(expected.get("switch"), abs=1e-9), name


def test_a_grid_runs_in_two_processes_as_in_one(tmp_path: Path) -> None:
    grid = tmp_path / "tiny.yaml"
    grid.write_text(GRID)
    found = []
    for options, there in (((), tmp_path / "one"), (TOGETHER, tmp_path / "two")):
        done = run(grid, there, *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("2 of 2 cells done") == 1, "only the runner talks"
        assert done.stdout.count(": done, linear") == 2
        assert done.stdout.count("  step ") == 8, "the four evaluations of both cells"
        found.append(records(there / "results" / "tiny"))
    alone, together = found
    assert {r.provenance["processes"] for r in together.values()} == {2}
    for arm, record in alone.items():
        other = together[arm]
        assert record.id == other.id
        assert (record.ledger.steps, record.ledger.images) == (other.ledger.steps, other.ledger.images)
        assert record.ledger.flops == pytest.approx(other.ledger.flops, rel=0.02)
        assert record.switch_step == other.switch_step
        for point, same in zip(record.curve, other.curve, strict=True):
            # Of fp32, whose rounding AdamW's first steps enlarge: in float64 all methods agree to 1e-6 (above).
            assert point.loss == pytest.approx(same.loss, abs=0.05)
    assert not list(tmp_path.glob("two/results/tiny/.work/*/result.json"))


def test_two_processes_agree_on_where_the_seconds_of_another_arm_are_spent(tmp_path: Path) -> None:
    grid = tmp_path / "tiny.yaml"
    grid.write_text(GRID.replace("{method: simclr}", "{name: timed, method: simclr, seconds_of: rela}"))
    done = run(grid, tmp_path, *TOGETHER)
    assert done.returncode == 0, done.stderr
    timed, rela = (records(tmp_path / "results" / "tiny")[arm] for arm in ("timed", "rela"))
    assert isinstance(timed, Finished)
    assert isinstance(rela, Finished)
    assert timed.ledger.steps % ASK_EVERY == 0, "they ask one another every so many steps"
    assert timed.ledger.seconds["train"] >= rela.ledger.seconds_with_targets


@pytest.mark.parametrize(
    ("does", "status", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "failed", "one of the processes that trained it died"),
        ("raise ValueError('on purpose')", "failed", "ValueError: on purpose"),
        (
            "raise torch.OutOfMemoryError('Tried to allocate 2.00 GiB.')",
            "oom",
            "out of memory while training in batches",
        ),
    ],
)
def test_a_process_that_fails_costs_its_cell_and_the_grid_goes_on(
    does: str, status: str, reason: str, tmp_path: Path
) -> None:
    grid, plugin = tmp_path / "tiny.yaml", tmp_path / "fails.py"
    grid.write_text(GRID.replace("{method: simclr}", "{method: fails}"))
    plugin.write_text(FAILS.format(does))
    done = run(grid, tmp_path, "--plugin", plugin, *TOGETHER)
    assert done.returncode == 1
    found = records(tmp_path / "results" / "tiny")
    assert {arm: record.status for arm, record in found.items()} == {"fails": status, "rela": "done"}, done.stderr
    assert reason in found["fails"].error
    assert f"1 {status}: {found['fails'].error}" in done.stderr


def test_a_runner_of_several_processes_shares_a_grid_with_another_runner(tmp_path: Path, server: Forks) -> None:
    grid = tmp_path / "tiny.yaml"
    grid.write_text(GRID.replace("seeds: [0]", "seeds: [0, 1]"))
    other = server.start(tmp_path, environment=ALWAYS)
    done = run(grid, tmp_path, *TOGETHER)
    assert done.returncode == server.wait(other) == 0, done.stderr
    assert done.stdout.count("4 of 4 cells done") == (tmp_path / "out").read_text().count("4 of 4 cells done") == 1
    told = {"start", "resume", "interrupted", "done", "failed"}
    logs = [[event["event"] for event in log if event["event"] in told] for log in events(tmp_path).values()]
    assert logs == [["start", "done"]] * 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_saves_the_cell_and_the_same_command_goes_on(number: int, server: Forks, tmp_path: Path) -> None:
    there = folder(tmp_path / "there", GRID.replace("epochs: 2", "epochs: 60"))
    only = ("--only", "arm=simclr")
    first = server.start(there, *TOGETHER, *only, environment=ALWAYS)
    until(lambda: saved(there))
    started = processes(first)
    assert len(started) == 3, "torchrun and two processes"
    os.kill(first, number)
    assert server.wait(first) == 130, (there / "out").read_text()
    assert (there / "out").read_text().count("stopped, and what was running is saved") == 1
    assert not any(Path(f"/proc/{each}").exists() for each in started)
    (log,) = events(there).values()
    assert log[-1]["event"] == "interrupted"
    step = max(event["step"] for event in log if event["event"] == "checkpoint")
    assert server.run(there, *TOGETHER, *only, "--set", "protocol.epochs=60", out="again") == 0
    assert f"resumes at step {step:,}" in (there / "again").read_text()


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGKILL,)])
def test_no_process_outlives_its_runner(numbers: tuple[int, ...], server: Forks, tmp_path: Path) -> None:
    """The method waits for ever, so that no process can do what the first signal asks."""
    there = folder(tmp_path / "there", GRID.replace("{method: simclr}", "{method: fails}"))
    plugin = there / "fails.py"
    plugin.write_text(FAILS.format("[(open(os.environ['WAITS'], 'w').close(), signal.pause()) for _ in iter(int, 1)]"))
    waits = {"WAITS": str(there / "waits")}
    first = server.start(there, "--plugin", plugin, "--only", "arm=fails", *TOGETHER, environment=waits)
    until((there / "waits").exists)
    started = processes(first)
    for number in numbers:
        os.kill(first, number)
        time.sleep(1)  # two signals of a number that come at once are one
    assert server.wait(first) in {130, -9}
    until(lambda: not any(Path(f"/proc/{each}").exists() for each in started))
