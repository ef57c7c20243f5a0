"""Cells side by side: the same results as one after the other, whatever ends a process, and no seconds of others."""

import io
import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.cli.run import Call
from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.core.registry import load_plugin
from bench.grid.expand import expand
from bench.grid.load import find_grid, load_grid
from bench.measure.clock import Clock
from bench.plan.graph import Task, plan
from bench.plan.state import Outcome
from bench.run.control import chosen
from bench.run.executors import Resources, executors, find_executor
from bench.run.executors.local import Local, cpu_environments, gpu_environments, with_counts
from bench.run.progress import Display
from bench.run.request import RunRequest
from bench.run.runner import run_tasks
from bench.store.record import Finished, Ledger, read_record, read_records
from tests.run.processes import ALWAYS, GRID, Forks, bench, events, folder, left, strays, until

CPU = torch.device("cpu")
LONG = GRID.replace("epochs: 4", "epochs: 100")


def tasks_of(there: Path) -> tuple[list[Task], Paths]:
    paths = Paths(there / "data", there / "results", "tiny")
    cells = expand(load_grid(str(there / "tiny.yaml")))
    return plan(cells, cells, paths, "grid tiny"), paths


def ledgers(there: Path) -> dict[str, Ledger]:
    records, damaged = read_records(there / "results" / "tiny")
    assert not damaged
    return {record.cell.arm: record.ledger for record in records}


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def saved(there: Path) -> list[str]:
    """Return the cells whose last event is that they were saved: they run."""
    return [cell for cell, log in events(there).items() if log and log[-1]["event"] == "checkpoint"]


# What each process is told


def test_processes_share_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    three = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}
    assert cpu_environments(2) == [three, three]
    assert with_counts([three, three]) == [three | {"BENCH_SIDE_BY_SIDE": "2"}] * 2
    assert [each["OMP_NUM_THREADS"] for each in cpu_environments(7)] == ["1"] * 7
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cpu_environments(2)[0]["MKL_NUM_THREADS"] == "2", "no more than the user has set"


def test_a_gpu_has_a_process_that_decodes_images_for_each_thread_unless_it_was_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def workers(threads: int, device: str = "cuda", **said: int) -> int:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        request = RunRequest("quickstart", None, (), (), Path(), Path(), **said)
        assert ("--workers" in request.to_argv()) == bool(said), "another machine has cores of its own"
        return request.workers_for(torch.device(device))

    assert [workers(threads) for threads in (1, 6, 64)] == [2, 6, 16]
    assert (workers(6, "cpu"), workers(6, workers=3), workers(6, workers=0)) == (2, 3, 0)


def test_each_gpu_has_its_processes_and_no_more_gpus_than_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8932,no,1")
    made = gpu_environments(2)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in made] == ["3", "GPU-8932", "3", "GPU-8932"]
    three = with_counts(made[:3])  # three cells are left
    assert [each["BENCH_SIDE_BY_SIDE"] for each in three] == ["2", "1", "2"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in gpu_environments(1)] == ["0", "1"]


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        (Resources(jobs=0), "--jobs 0: must be at least 1"),
        (Resources(jobs=10**6), r"--jobs 1000000: this process may use \d+ cores"),
        (Resources(jobs=1, gpus_per_cell=2), "--jobs 1 --gpus-per-cell 2: choose one"),
    ],
)
def test_what_cannot_be_is_refused(resources: Resources, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        find_executor("local", "cpu", resources)


def test_jobs_are_so_many_on_the_cpu_or_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for device, environments in (("cpu", cpu_environments(2)), ("cuda", gpu_environments(2))):
        local = find_executor("local", device, Resources(jobs=2))
        assert isinstance(local, Local)
        assert local.environments == environments
    assert len(gpu_environments(2)) == 6


def test_a_cell_gets_no_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--gpus-per-cell 4: torch sees 2 GPUs here"):
        find_executor("local", "auto", Resources(gpus_per_cell=4))
    find_executor("local", "auto", Resources(gpus_per_cell=2))


def test_a_runner_is_asked_all_that_matters_to_a_cell_and_no_choice_of_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Call] = []
    monkeypatch.setattr(Call, "run", lambda call: calls.append(call))
    words = [
        *("--grid", "quickstart", "--profile", "mini", "--set", "seeds=[1]", "--set", "budgets=[0.5]"),
        *("--plugin", "mine.py", "--device", "cpu", "--workers", "3", "--deterministic", "--cell-timeout", "9"),
        *("--data-root", "here", "--results", str(tmp_path)),
        *("--only", "seed=1", "--cell", "abc", "--retry", "oom", "--jobs", "2", "--executor", "local"),
    ]
    assert bench("run", *words).code == 0
    made = calls[0].request.to_argv()
    assert made[:4] == (sys.executable, "-m", "bench", "run")
    assert bench(*made[3:], "--cell", "-").code == 0
    first, second = calls
    here = Path().absolute()
    asked = replace(first.request, grid=str(find_grid("quickstart")), plugins=(here / "mine.py",))
    assert second.request == replace(asked, data_root=here / "here")
    assert vars(second) | {"request": None} == vars(first) | {
        "request": None, "only": None, "cells": ("-",), "retry": (), "resources": Resources()
    }  # fmt: skip
    assert first.resources == Resources(jobs=2)


def test_an_executor_of_a_plugin_is_given_no_option_that_it_does_not_take(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    with executors.temporary():
        load_plugin(tmp_path / "mine.py")
        assert type(find_executor("mine", "cpu", Resources())).__name__ == "Mine"
        with pytest.raises(UserError, match="--gpus-per-cell is not an option of --executor mine"):
            find_executor("mine", "cpu", Resources(gpus_per_cell=2))
        with pytest.raises(UserError, match="unknown executor 'min'; did you mean 'mine'"):
            find_executor("min", "cpu", Resources())


# Chosen cells


def test_chosen_cells_run_alone_once_what_they_need_is_done(tmp_path: Path) -> None:
    tasks, paths = tasks_of(folder(tmp_path / "there", GRID.replace("epochs: 4", "epochs: 1")))
    maker, trained = (next(task for task in tasks if task.cell.arm == arm) for arm in ("byol", "trained"))

    def run(*cells: str) -> list[Outcome]:
        return run_tasks(chosen(tasks, paths, cells, []), paths, CPU, 0, Display())

    (skipped,) = run(trained.id)
    assert (skipped.status, skipped.reason) == ("skipped", f"the cell {maker.id} that it needs is not done")
    assert [(one.task.id, one.status) for one in run(maker.id)] == [(maker.id, "done")]
    assert [(one.task.id, one.status) for one in run(trained.id)] == [(trained.id, "done")]
    with pytest.raises(UserError, match="--cell nothing: no cell of tiny has this id"):
        chosen(tasks, paths, ["nothing"], [])


def test_cells_are_chosen_by_ids_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, paths = tasks_of(folder(tmp_path / "there", GRID))
    first, second, *_ = tasks
    for text, cells, expected in ((f"{second.id}\n{first.id}\n", ["-"], 2), (second.id, [first.id, "-"], 2)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert chosen(tasks, paths, cells, []) == tasks[:expected]
    for text, says in (("", "there is no id on standard input"), ("nothing", "no cell of tiny has this id")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        with pytest.raises(UserError, match=says):
            chosen(tasks, paths, ["-"], [])


# Seconds that others had a part in


def test_a_record_tells_how_many_cells_shared_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets that a cell made beside others are marked in the record of one that uses them alone."""
    text = GRID.replace("epochs: 4", "epochs: 1").replace("{name: trained, method: swav, rela: {prior: DIGITS-T}}", "")
    text = text.replace("  - \n", "  - {name: again, method: byol, rela: {prior: rand}}\n")
    tasks, paths = tasks_of(folder(tmp_path / "there", text))
    monkeypatch.setenv("BENCH_SIDE_BY_SIDE", "3")
    run_tasks([task for task in tasks if task.cell.arm == "queue"], paths, CPU, 0, Display())
    monkeypatch.delenv("BENCH_SIDE_BY_SIDE")
    run_tasks([task for task in tasks if task.cell.arm == "again"], paths, CPU, 0, Display())
    queue, again = (ledgers(tmp_path / "there")[arm] for arm in ("queue", "again"))
    assert queue.targets
    assert again.targets
    assert (queue.side_by_side, queue.targets.side_by_side, queue.targets.cached) == (3, 3, False)
    assert (again.side_by_side, again.targets.side_by_side, again.targets.cached) == (1, 3, True)
    assert queue.seconds["train"] > 0, "kept as it was measured"


def test_a_clock_remembers_the_most_cells_until_what_they_had_done_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(CPU)
    clock.add({"train": 5.0}, 5.0, None, side_by_side=4)
    assert clock.side_by_side == 4
    clock.forget()
    assert clock.side_by_side == 1
    assert clock.read()["train"] < 5.0
    monkeypatch.setenv("BENCH_SIDE_BY_SIDE", "2")
    clock = Clock(CPU)
    clock.add({"train": 5.0}, 5.0)
    assert clock.side_by_side == 2, "it was alone before"


def test_records_without_the_marks_are_read_and_not_taken_for_alone(tmp_path: Path) -> None:
    path = next((Path(__file__).parents[2] / "results" / "cifar_small").glob("*.json"))
    raw = json.loads(path.read_text())
    for mark in ("side_by_side", "other_load"):
        raw["ledger"].pop(mark, None)
    (tmp_path / path.name).write_text(json.dumps(raw))
    record = read_record(tmp_path / path.name)
    assert isinstance(record, Finished)
    assert not record.ledger.alone
    assert record.ledger.company == "whether other work ran was not measured"


# Processes


@pytest.fixture(scope="module")
def alone(server: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid that was run one cell after the other, on one thread as each of the processes has."""
    there = folder(tmp_path_factory.mktemp("side") / "alone")
    assert server.run(there) == 0
    return there


@pytest.mark.slow
def test_side_by_side_is_as_one_after_the_other(server: Forks, alone: Path, tmp_path: Path) -> None:
    together = folder(tmp_path / "together")
    assert server.run(together, "--jobs", "2") == 0, (together / "out").read_text()
    assert left(together, cached=False) == left(alone, cached=False)
    assert strays(together) == []
    assert {ledger.side_by_side for ledger in ledgers(together).values()} == {2}
    assert {ledger.side_by_side for ledger in ledgers(alone).values()} == {1}
    told = (together / "out").read_text()
    assert len(re.findall(r"^\[\d/4\] .*: done, linear", told, re.MULTILINE)) == 4
    assert told.count("4 of 4 cells done (0 before); records in") == told.count("makes tables and plots") == 1
    assert server.run(together, "--jobs", "2", out="again") == 0
    assert "4 of 4 cells done (4 before)" in (together / "again").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_saves_all_that_runs_and_the_same_command_goes_on(
    number: int, server: Forks, tmp_path: Path
) -> None:
    there, whole = folder(tmp_path / "there", LONG), folder(tmp_path / "whole", LONG)
    first = server.start(there, "--jobs", "2", environment=ALWAYS)
    until(lambda: len(saved(there)) == 2)
    runners = children(first)
    assert len(runners) == 2
    os.kill(first, number)
    assert server.wait(first) == 130
    assert all(not Path(f"/proc/{runner}").exists() for runner in runners)
    assert (there / "out").read_text().count("stopped, and what was running is saved") == 1
    assert sum(log[-1]["event"] == "interrupted" for log in events(there).values()) == 2
    assert read_records(there / "results" / "tiny") == ([], [])
    assert server.run(there, "--jobs", "2", "--only", "arm=queue", out="again") == 0, (there / "again").read_text()
    assert "resumes at step" in (there / "again").read_text()
    assert server.run(whole, "--only", "arm=queue") == 0
    tasks, paths = tasks_of(there)
    queue = next(task for task in tasks if task.cell.arm == "queue")
    name = paths.backbone(queue.id).name
    assert left(there)[name] == left(whole)[name], "the same weights, bit for bit"
    assert ledgers(there)["queue"].side_by_side == 2, "of the first run, as it was alone in the second"


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(server: Forks, tmp_path: Path) -> None:
    there = folder(tmp_path / "there", LONG)
    first = server.start(there, "--jobs", "2", environment=ALWAYS)
    until(lambda: len(saved(there)) == 2)
    runners = children(first)
    for runner in runners:
        os.kill(runner, signal.SIGSTOP)  # so that none can do what the first signal asks
    os.kill(first, signal.SIGINT)
    os.kill(first, signal.SIGTERM)
    assert server.wait(first) == 130
    assert all(not Path(f"/proc/{runner}").exists() for runner in runners)
    assert "stopped at once" in (there / "out").read_text()


@pytest.mark.slow
def test_a_killed_process_costs_its_cell_alone(server: Forks, alone: Path, tmp_path: Path) -> None:
    """The cell kills whichever process has it, the first time that this command and no other runs it."""
    there = folder(tmp_path / "there")
    (there / "deadly.py").write_text(DEADLY.format(folder=str(there)))
    options = ("--jobs", "2", "--plugin", there / "deadly.py")
    (there / "armed").touch()
    assert server.run(there, *options) == 1
    told = (there / "out").read_text()
    assert re.search(r"process \d+ was killed by SIGKILL while it ran digits queue .*; another takes its place", told)
    assert "1 failed: the process that ran it died; the next run resumes from the last checkpoint" in told
    assert "1 skipped" in told, "what matches its FLOPs"
    states = {record.cell.arm: record.status for record in read_records(there / "results" / "tiny")[0]}
    assert states == {"byol": "done", "trained": "done", "queue": "failed"}
    (there / "armed").unlink()
    assert server.run(there, *options, out="again") == 0, (there / "again").read_text()
    assert left(there, cached=False) == left(alone, cached=False)


@pytest.mark.slow
def test_a_full_disk_is_said_once(server: Forks, tmp_path: Path) -> None:
    there = folder(tmp_path / "there")
    (there / "full.py").write_text(FULL)
    assert server.run(there, "--jobs", "2", "--plugin", there / "full.py") == 2
    told = (there / "out").read_text()
    assert told.count("error: ") == told.count("cannot be written") == 1, told
    assert told.count("make room and run the same command again") == 1


@pytest.mark.slow
def test_processes_end_when_their_parent_was_killed(server: Forks, tmp_path: Path) -> None:
    there = folder(tmp_path / "there", LONG)
    first = server.start(there, "--jobs", "2", environment=ALWAYS)
    until(lambda: len(saved(there)) == 2)
    runners = children(first)
    os.kill(first, signal.SIGKILL)
    assert server.wait(first) == -9
    until(lambda: not any(Path(f"/proc/{runner}").exists() for runner in runners))
    assert sum(log[-1]["event"] == "interrupted" for log in events(there).values()) == 2


MINE = """
from bench.run.executors import Executor, executors

@executors.register("mine")
class Mine(Executor):
    def run(self, work):
        return []
"""
DEADLY = """
import os, signal
from pathlib import Path
from methods import methods
from methods.moco import MoCo

save = MoCo.after_step

def after_step(self):
    if (Path({folder!r}) / "armed").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    save(self)

MoCo.after_step = after_step
"""
FULL = """
import resource, signal
from bench.core.environment import launched

if launched():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
"""
