"""What other work takes of a cell's time is measured, kept, and told from what the cell's own processes take."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.core.errors import Interrupted
from bench.core.paths import Paths
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure import clock as meter
from bench.measure import load
from bench.measure.clock import Clock, Spent
from bench.measure.load import Reading, cpu_seconds, load_reader, taken
from bench.plan.graph import Task, plan
from bench.store.record import OTHER_LOAD, Ledger
from bench.train.cell import run_cell
from bench.train.keeper import Hooks, Limits
from tests.run.processes import python, until

CPU = torch.device("cpu")
START = Reading(wall=100.0, busy=900.0, own=40.0, held=3.0, cores=2)
QUIET = replace(START, wall=110.0, busy=919.9, own=59.8)  # 10 s on two threads
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
arms:
  - {method: byol}
  - {name: first, method: byol, rela: {prior: rand}}
  - {name: second, method: simclr, rela: {prior: rand}}
protocol: {epochs: 4, batch_size: 16, input_size: 8, evaluate_at: [0.25, 1.0], probe: {epochs: 1}, knn: {k: 5}}
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


# The rule


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        (QUIET, 0.05),  # 0.1 of 20 core-seconds were not the cell's
        (replace(QUIET, busy=QUIET.busy - 1), 0.0),  # counted in ticks: less than the cell itself
        (replace(START, wall=110.0, busy=920.0, own=50.0), 5.0),  # another process has one of the two cores
        (replace(START, wall=110.0, busy=910.0, own=50.0), 0.0),  # one thread, and one core idle
        (replace(START, wall=110.0, busy=920.0, own=46.0), 7.0),  # others have both, of a cell of one thread too
        (replace(START, wall=190.0, busy=910.0, own=50.0), 80.0),  # stopped for 80 s
        (replace(QUIET, held=11.0), 4.05),  # a quota kept it from 8 core-seconds
        (replace(QUIET, shared_gpu=True), 10.0),
    ],
)
def test_what_others_took(after: Reading, seconds: float) -> None:
    assert taken(START, after) == pytest.approx(seconds)
    assert taken(None, after) is taken(START, None) is None


def test_a_share_is_of_the_seconds_and_unknown_parts_are_not_nothing() -> None:
    assert Spent(8.0, None, 2.0).other_load == 0.25
    assert (Spent(8.0, None, 2.0) + Spent(2.0, None, 2.0)).other_load == pytest.approx(0.4)
    assert (Spent(8.0, None, 2.0) + Spent(8.0, None)).other_load is None
    assert Spent(0.0, None, 0.0).other_load == 0.0


# The counters


@linux
def test_processes_of_the_cell_are_no_others() -> None:
    """A child that lives, and one that has ended, against what they and the kernel say of their CPU time."""

    def rest() -> float:
        """Return what `cpu_seconds` counts beyond this process and its children that ended, by getrusage."""
        mine = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cpu_seconds(os.getpid()) - sum(each.ru_utime + each.ru_stime for each in mine)

    before = rest()
    with python(SPINS, 0.3) as child:
        assert child.stdout
        spent = float(child.stdout.readline())
        assert rest() - before == pytest.approx(spent, abs=0.1)
        child.communicate()
    assert rest() == pytest.approx(before, abs=0.1)


@linux
def test_the_machine_is_busy_with_all_that_is_not_idle() -> None:

    def whole() -> float:
        """Return the seconds of all cores that were neither idle nor waiting, by the kernel's own sum."""
        user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split()[1:9])
        return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")

    cores = os.cpu_count() or 1
    before, busy, after = whole(), load.busy_seconds(set(range(cores))), whole()
    assert before - 0.1 * cores < busy <= after + 0.1 * cores, "each core's counts are rounded"


def test_seconds_that_quotas_held_back_are_added_up_over_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "PROC", tmp_path / "proc")
    monkeypatch.setattr(load, "CGROUPS", tmp_path / "groups")
    assert load.held_seconds() == 0.0
    stats = {
        "pod/cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 1500000\n",
        "pod/inner/cpu.stat": "nr_throttled 1\nthrottled_usec 250000\n",
        "cpu/old/cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 4000000000\n",
        "other/cpu.stat": "throttled_usec 99000000\n",
    }
    for name, text in {f"groups/{key}": value for key, value in stats.items()}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/other\n2:cpu,cpuacct:/old\n0::/pod/inner\n")
    assert load.held_seconds() == pytest.approx(1.5 + 0.25 + 4.0)


def test_without_counters_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PROC", tmp_path)
    assert load_reader(CPU)() is None
    clock = Clock(CPU)
    with clock.phase("train"):
        pass
    assert clock.spent("train").other_load is None
    assert clock.taken() is None


@linux
def test_counters_that_cannot_be_of_this_machine_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some sandboxes show a machine that never does anything."""
    (tmp_path / str(os.getpid()) / "task").mkdir(parents=True)
    stat = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    stat[11:15] = ["7", "0", "0", "0"]
    (tmp_path / str(os.getpid()) / "stat").write_text(f"1 (x) {' '.join(stat)}")
    monkeypatch.setattr(load, "PROC", tmp_path)
    core = min(os.sched_getaffinity(0))
    (tmp_path / "stat").write_text(f"cpu{core} 7 0 0 9 9 0 0 0 0 0\n")
    assert load_reader(CPU)() is not None
    (tmp_path / "stat").write_text(f"cpu{core} 0 0 0 9 9 0 0 0 0 0\n")
    assert load_reader(CPU)() is None


# Cells


class Machine:
    """Counters of one core, all of which the cell has but for the share `load`; it may change at any time."""

    def __init__(self) -> None:
        self.load, self.others, self.last = 0.0, 0.0, time.perf_counter()

    def __call__(self) -> Reading:
        now = time.perf_counter()
        self.others += self.load * (now - self.last)
        self.last = now
        return Reading(wall=now, busy=now + self.others, own=now, held=0.0, cores=1)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(meter, "load_reader", lambda device: machine)
    return machine


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "data", tmp_path / "results", "tiny")


@pytest.fixture
def tasks(tmp_path: Path, paths: Paths) -> dict[str, Task]:
    (tmp_path / "tiny.yaml").write_text(GRID)
    cells = expand(load_grid(str(tmp_path / "tiny.yaml")))
    return {task.cell.arm: task for task in plan(cells, cells, paths, "grid tiny")}


def ledger_of(task: Task, paths: Paths, watch: Hooks | None = None) -> Ledger:
    watch = watch or Hooks(lambda *_: None, lambda *_: None, lambda: False)
    ledger = run_cell(task, paths, CPU, 0, watch, Limits(checkpoint_seconds=0)).ledger
    assert ledger
    return ledger


def test_load_before_an_evaluation_marks_the_cell_though_it_is_little_of_the_whole(
    tasks: dict[str, Task], paths: Paths, machine: Machine
) -> None:
    machine.load = 0.5
    curve: list[float] = []

    def event(name: str, facts: dict[str, float]) -> None:
        if name == "evaluation":
            curve.append(facts["other_load"])
            machine.load = 0.0

    ledger = ledger_of(tasks["byol"], paths, Hooks(lambda *_: None, event, lambda: False))
    first, last = curve
    assert first > last > 0
    assert ledger.other_load == first, "that evaluation has seconds of its own"
    assert not ledger.alone


def test_an_interrupted_cell_keeps_what_others_took(tasks: dict[str, Task], paths: Paths, machine: Machine) -> None:
    done: list[int] = []
    machine.load = 0.75
    with pytest.raises(Interrupted):
        ledger_of(tasks["byol"], paths, Hooks(lambda *_: done.append(1), lambda *_: None, lambda: len(done) == 2))
    machine.load = 0.0
    ledger = ledger_of(tasks["byol"], paths)
    assert ledger.other_load
    assert OTHER_LOAD < ledger.other_load < 0.75


def test_targets_keep_what_others_took_while_they_were_made(
    tasks: dict[str, Task], paths: Paths, machine: Machine
) -> None:
    machine.load = 0.5
    first = ledger_of(tasks["first"], paths).targets
    machine.load = 0.0
    second = ledger_of(tasks["second"], paths)
    assert first
    assert second.targets
    assert second.targets.cached
    assert second.targets.other_load == first.other_load
    assert (first.alone, second.targets.alone) == (False, False)
    assert second.alone, "it had the machine to itself when it was trained"


@linux
def test_another_process_on_the_cores_of_a_cell_marks_it(tasks: dict[str, Task], paths: Paths) -> None:
    """One that is no child of the cell's; on one core, so that it need not be many."""
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        with stranger():
            ledger = ledger_of(tasks["first"], paths)
    finally:
        os.sched_setaffinity(0, cores)
    assert ledger.targets
    assert ledger.other_load
    assert ledger.other_load > OTHER_LOAD
    assert not ledger.alone
    assert ledger.company.startswith("other work took")
    assert ledger.side_by_side == 1, "it runs no cell"


@contextmanager
def stranger() -> Iterator[None]:
    """A busy process whose parent has ended."""
    command = [sys.executable, "-c", STRANGER, SPINS]
    started = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    try:
        until(lambda: cpu_seconds(started) > 0.1)  # it spins
        yield
    finally:
        os.kill(started, 9)


SPINS = """
import sys, time
while time.process_time() < float(sys.argv[1]):
    pass
print(time.process_time(), flush=True)
sys.stdin.read()
"""
STRANGER = """
import subprocess, sys
null = subprocess.DEVNULL
print(subprocess.Popen([sys.executable, "-c", sys.argv[1], "600"], stdin=null, stdout=null, stderr=null).pid)
"""
