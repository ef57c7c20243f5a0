"""Grids on a real Slurm of two nodes: jobs that wait for others, a lost node, warnings, failures, two nodes a cell."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.daemons import Slurm, until
from tests.run.processes import ALWAYS, ROOT, events, folder, left

pytestmark = pytest.mark.slow

GRID = """
backbone: resnet_small
datasets: [{name: cifar10, train_images: 500, protocol: {blur: false}}]
seeds: [0, 1]
budgets: [0.5]
arms:
  - {method: byol, budgets: [0.5, 1.0]}
  - {name: rand, method: byol, rela: {prior: rand, phase: 0.5}}
  - {name: trained, method: byol, budgets: [0.5, 1.0], rela: {prior: CF10-T, phase: 0.5}}
  - {name: matched, method: simclr, flops_of: rand}
protocol: {epochs: 10, batch_size: 50, input_size: 16, evaluate_at: [1.0], probe: {epochs: 3}, knn: {k: 5}}
"""
FAILS = """
from torch import Tensor

from methods import Batch, methods
from methods.simsiam import SimSiam


@methods.register("fails")
class Fails(SimSiam):
    def loss(self, batch: Batch) -> Tensor:
        raise RuntimeError("on purpose")
"""


@dataclass
class Runs:
    """Calls of the command line on a cluster, or without it."""

    slurm: Slurm
    folder: Path
    data: Path

    def __call__(self, verb: str, *words: str, expect: int = 0) -> str:
        """Return what a verb prints; `run` is on the cluster unless it says otherwise."""
        paths = ["--results", str(self.folder / "results")]
        paths += ["--data-root", str(self.data)] if verb in {"run", "status"} else []
        command = [sys.executable, "-m", "bench", verb, "--grid", str(self.folder / "tiny.yaml"), *paths, *words]
        environment = self.slurm.environment | ALWAYS | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, *words: str, expect: int = 0) -> str:
        options = ("--executor", "slurm", "--slurm", "partition=main", "--device", "cpu")
        return self("run", *options, *words, expect=expect)

    def queue(self) -> dict[str, tuple[str, str]]:
        """Return state and node of each of the jobs."""
        lines = self.slurm.run("squeue", "-h", "--array", "-o", "%i|%T|%N").splitlines()
        return {number: (state, node) for number, state, node in (line.split("|") for line in lines)}

    def job(self, cell: str) -> str:
        return str(json.loads((self.folder / "results" / "tiny" / ".work" / cell / "slurm.json").read_text())["job"])

    def ended(self) -> bool:
        return not self.queue()

    def caught(self, node: str = "", but: str = "") -> str:
        """Wait for a cell that has trained some of its steps and has many left, and return it."""
        found: list[str] = []

        def look() -> list[str]:
            for cell, log in events(self.folder).items():
                last = next((each for each in reversed(log) if "step" in each), {"event": ""})
                begun = next((each for each in reversed(log) if each["event"] in {"start", "resume"}), None)
                if cell != but and begun and last["event"] == "checkpoint" and 3 <= last["step"] <= begun["steps"] // 2:
                    state, on = self.queue().get(self.job(cell), ("", ""))
                    if state == "RUNNING" and node in {"", on}:
                        found.append(cell)
            return found

        until(look)
        return found[0]

    def names(self, cell: str) -> list[str]:
        """Return how a cell began and ended, each time."""
        told = {"start", "resume", "interrupted", "done", "failed"}
        return [each["event"] for each in events(self.folder)[cell] if each["event"] in told]


@pytest.fixture
def runs(slurm: Slurm, tmp_path: Path, cifar10_jpeg: Path) -> Runs:
    return Runs(slurm, folder(tmp_path / "there", GRID), cifar10_jpeg)


def test_a_grid_survives_a_lost_node_and_a_requeued_job_with_the_records_of_one_machine(
    runs: Runs, slurm: Slurm, tmp_path: Path, cifar10_jpeg: Path
) -> None:
    alone = Runs(slurm, folder(tmp_path / "alone", GRID), cifar10_jpeg)
    alone("run", "--device", "cpu")
    said = runs.submit()
    assert "12 cells submitted, in 5 groups" in said
    assert "0 of 12 cells done (0 before), 12 queued" in said
    again = runs.submit()
    assert "nothing to submit: " in again
    assert "cells are in the queue already" in again

    lost = runs.caught("n1")
    slurm.lose_node("n1")
    until(lambda: slurm.nodes()["n1"].startswith("down"))
    shown = runs("status")
    assert re.search(rf"{lost}.*(queued \(job|running \()", shown), shown

    second = runs.caught(but=lost)
    slurm.run("scontrol", "requeue", runs.job(second))
    slurm.start_node("n1")
    until(runs.ended)
    assert left(runs.folder, cached=False) == left(alone.folder, cached=False)
    assert len(list((runs.folder / "results" / "tiny").glob("*.json"))) == 12
    assert runs.names(lost) == ["start", "resume", "done"]
    assert runs.names(second) == ["start", "interrupted", "resume", "done"]
    assert runs("status").splitlines()[-1] == "12 done"
    assert "nothing to submit\n12 of 12 cells done (12 before)" in runs.submit()
    print(f"lost with its node: {lost}, {resumed(runs, lost)}; requeued: {second}, {resumed(runs, second)}")


def resumed(runs: Runs, cell: str) -> str:
    """Return at which step a cell was stopped and where it went on."""
    log = events(runs.folder)[cell]
    at = next(index for index, each in enumerate(log) if each["event"] == "resume")
    seen = [each["step"] for each in log[:at] if "step" in each]
    return f"seen at step {seen[-1]}, went on at {log[at]['step']} of {log[at]['steps']}"


def test_a_warning_saves_the_cell_and_the_job_goes_back_into_the_queue_and_cancel_ends_it(runs: Runs) -> None:
    """The warning is the signal that Slurm sends ahead of the time limit, through Slurm."""
    byol = ("--only", "arm=byol,budget=1,seed=0", "--set", "protocol.epochs=300")
    runs.submit(*byol)
    cell = runs.caught()
    until(lambda: any(each["event"] == "step" for each in events(runs.folder)[cell]))
    assert re.search(r"running \(.*\), step \d+ of 3,000, about .* left; job \d+, on n[12]", runs("status", *byol))
    runs.slurm.run("scancel", "--signal=USR2", runs.job(cell))
    until(lambda: runs.names(cell) == ["start", "interrupted"])
    until(lambda: runs.names(cell) == ["start", "interrupted", "resume"])
    log = events(runs.folder)[cell]
    stopped = next(i for i, each in enumerate(log) if each["event"] == "interrupted")
    assert log[stopped - 1]["event"] == "checkpoint"
    resume = next(each for each in log if each["event"] == "resume")
    assert resume["step"] == log[stopped - 1]["step"] > 0

    runs.caught()
    other = runs.slurm.run("sbatch", "--parsable", "--hold", "--wrap", "true").strip()
    assert "1 jobs of tiny cancelled" in runs("cancel", "--set", "protocol.epochs=300")
    until(lambda: runs.queue().keys() == {other})
    runs.slurm.run("scancel", other)
    assert runs.names(cell) == ["start", "interrupted", "resume", "interrupted"]
    assert "1 stopped" in runs("status", *byol)
    assert "tiny has no jobs in the queue" in runs("cancel", "--set", "protocol.epochs=300")


def test_a_cell_that_is_preempted_saves_itself_and_goes_on_later(runs: Runs) -> None:
    byol = ("--only", "arm=byol,budget=1,seed=0", "--set", "protocol.epochs=8")
    runs.submit(*byol)
    cell = runs.caught()
    urgent = ("--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap", "srun hostname")
    runs.slurm.run("sbatch", *urgent)
    until(runs.ended)
    assert runs.names(cell) == ["start", "interrupted", "resume", "done"], log_of(runs, cell)


def test_what_needs_a_failed_cell_leaves_the_queue_and_is_skipped(runs: Runs, tmp_path: Path) -> None:
    plugin = tmp_path / "fails.py"
    plugin.write_text(FAILS)
    arms = "[{method: fails, budgets: [0.5]}, {name: after, method: byol, flops_of: fails}, {method: byol}]"
    options = ("--plugin", str(plugin), "--set", f"arms={arms}", "--set", "seeds=[0]", "--set", "protocol.epochs=2")
    runs.submit(*options)
    until(runs.ended)
    shown = runs("status", *options)
    assert "failed: RuntimeError: on purpose" in shown
    assert re.search(r"after 50% seed 0 +skipped: the cell \w+ that it needs is failed", shown)
    assert shown.splitlines()[-1] in {"1 failed, 1 skipped, 1 done", "1 done, 1 failed, 1 skipped"}
    failed = re.search(r"(\w+)  cifar10 fails", shown)
    assert failed
    assert "ExitCode=1:0" in runs.slurm.run("scontrol", "show", "job", runs.job(failed[1]))
    assert "2 cells submitted, in 2 groups" in runs.submit(*options)
    until(runs.ended)


def test_two_nodes_train_a_cell_together(runs: Runs) -> None:
    """One process on each node, with a requeue in the middle; what they share is exact to rounding."""
    options = ("--only", "arm=byol,budget=1,seed=0", "--set", "protocol.epochs=4")
    runs.submit(*options, "--slurm", "nodes=2")
    cell = runs.caught()
    runs.slurm.run("scancel", "--signal=USR2", runs.job(cell))
    until(runs.ended)
    assert runs.names(cell) == ["start", "interrupted", "resume", "done"], log_of(runs, cell)
    record = json.loads((runs.folder / "results" / "tiny" / f"{cell}.json").read_text())
    assert record["provenance"]["processes"] == 2


def log_of(runs: Runs, cell: str) -> str:
    return (runs.folder / "results" / "tiny" / ".work" / "slurm" / f"{runs.job(cell)}_0_log.out").read_text()
