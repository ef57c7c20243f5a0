"""A bad cell is a record with one sentence and a log with the traceback, and the grid goes on."""

import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.data import DatasetInfo, dataset_cache, datasets
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.memory import sentence
from bench.plan.graph import Task, plan
from bench.plan.state import Outcome, with_status
from bench.run.control import check_retry
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.store.record import Failed, Finished, Record, read_record, record_path, write_record
from bench.train.keeper import Limits
from methods import Batch, methods
from methods.byol import BYOL
from priors import Prior, priors
from tests.run.processes import ROOT, STREAM, images

CPU = torch.device("cpu")
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
arms: [bad, simclr]
protocol: {epochs: 3, batch_size: 32, input_size: 8, probe: {epochs: 3}, knn: {k: 5}}
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "data", tmp_path / "results", "tiny")


def tasks_of(paths: Paths, *settings: str) -> list[Task]:
    path = paths.results.parent / "tiny.yaml"
    path.write_text(GRID)
    cells = expand(load_grid(str(path), settings=settings))
    return plan(cells, cells, paths, "grid tiny")


def run(paths: Paths, *settings: str, workers: int = 0, limits: Limits | None = None) -> list[Outcome]:
    return run_tasks(tasks_of(paths, *settings), paths, CPU, workers, Display(), limits)


def log(outcome: Outcome, paths: Paths) -> str:
    return (paths.work(outcome.task.id) / "run.log").read_text()


def recorded(outcome: Outcome, paths: Paths) -> Record:
    found = read_record(record_path(paths.records, outcome.task.id))
    assert isinstance(found, Record)
    return found


class Bad(BYOL):
    """Does `harm` after its second step, or another."""

    steps, at = 0, 2

    def after_step(self) -> None:
        super().after_step()
        self.steps += 1
        if self.steps == self.at:
            self.harm()

    def harm(self) -> None:
        raise NotImplementedError


class Allocates(Bad):
    def harm(self) -> None:
        torch.empty(10**15)


class Python(Bad):
    def harm(self) -> None:
        bytearray(10**15)


class Gpu(Bad):
    def harm(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 1 GiB")


class Exits(Bad):
    def harm(self) -> None:
        raise SystemExit("enough")


class Raises(Bad):
    def harm(self) -> None:
        raise KeyError("on purpose")


class Mute(RuntimeError):
    def __str__(self) -> str:
        raise ValueError


class Unspeakable(Bad):
    def harm(self) -> None:
        raise Mute


class Surrogate(Bad):
    def harm(self) -> None:
        raise OSError("no file \udcff")  # as Python reads a name that is not UTF-8


class Initial(BYOL):
    def __init__(self, backbone: nn.Module, dim: int) -> None:
        raise RuntimeError("no such GPU\nand more")


class Infinite(BYOL):
    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) * float("inf")


class InfiniteAtLast(Bad):
    """Spoils what it has trained after the last of its steps, whose loss shows nothing of it."""

    at = 6

    def harm(self) -> None:
        next(self.backbone.parameters()).data.fill_(float("inf"))


@pytest.mark.parametrize(
    ("method", "status", "reason"),
    [
        (Allocates, "oom", r"out of memory while training in batches of 32: the peak was [\d.]+ GB, 4,000,000.00 GB "),
        (Python, "oom", r"out of memory while training in batches of 32: the peak was [\d.]+ GB"),
        (Gpu, "oom", r"the peak was [\d.]+ GB, 2.15 GB more .*; an estimate from that: of 32 images at most \d+ fit"),
        (Exits, "failed", r"SystemExit: enough"),
        (Raises, "failed", r"KeyError: 'on purpose'"),
        (Unspeakable, "failed", r"Mute$"),
        (Surrogate, "failed", r"OSError: no file \\udcff$"),
        (Initial, "failed", r"RuntimeError: no such GPU$"),
        (Infinite, "failed", r"the loss is -?(inf|nan) at step 2"),
        (InfiniteAtLast, "failed", r"the backbone's features are not finite numbers"),
    ],
)
def test_a_bad_cell_is_recorded_and_the_next_one_runs(
    method: type[BYOL], status: str, reason: str, paths: Paths, temporary: Any
) -> None:
    temporary(methods, bad=method)
    bad, good = run(paths)
    assert (bad.status, good.status) == (status, "done")
    found = recorded(bad, paths)
    assert found.status == status
    assert found.error == bad.reason
    assert re.search(reason, bad.reason), bad.reason
    assert "\n" not in bad.reason
    text = log(bad, paths)
    assert "Traceback (most recent call last)" in text
    assert bad.reason in text
    again, _ = run(paths)
    assert (again.status, again.cached) == (status, False), "it is tried again"


def test_the_estimate_is_that_of_a_line_through_two_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GB before the first step, 8 GB and 2 GB more at 128 images: 8 GB for 128, so 6 GB are enough for 96."""
    monkeypatch.setattr("bench.measure.memory.peak_memory", lambda device: 8 * 10**9)
    monkeypatch.setattr("bench.measure.memory.total_memory", lambda device: 8 * 10**9)
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2000000000 bytes.")
    text = sentence(error, CPU, "training in batches of 128", 128, 2 * 10**9)
    assert text.endswith(
        "the peak was 8.00 GB, 2.00 GB more were asked for; an estimate from that: of 128 images at most 96 fit"
    )
    assert "at most 127 fit" in sentence(MemoryError(), CPU, "training", 128, 10**9), "not as many as did not fit"
    assert "fit" not in sentence(error, CPU, "evaluating", None, 2 * 10**9)


class BadPrior(Prior):
    def __init__(self, *given: object) -> None:
        raise ZeroDivisionError("on purpose")


class BadModel(Prior):
    def model(self) -> nn.Module:
        raise ZeroDivisionError("on purpose")


class Overflows(nn.Flatten):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 1e39


class InfinitePrior(Prior):
    def model(self) -> nn.Module:
        return Overflows()


@pytest.mark.parametrize(
    ("prior", "status", "reason"),
    [
        (BadPrior, "skipped", "ZeroDivisionError: on purpose"),
        (BadModel, "failed", "ZeroDivisionError: on purpose"),
        (InfinitePrior, "failed", "the prior's features, in fp32, are not finite numbers"),
    ],
)
def test_a_bad_prior_costs_its_own_cells(
    prior: type[Prior], status: str, reason: str, paths: Paths, temporary: Any
) -> None:
    temporary(priors, bad=prior)
    bad, good = run(paths, "arms=[{method: byol, rela: {prior: bad}}, simclr]")
    assert (bad.status, good.status) == (status, "done")
    assert reason in bad.reason


class Slow(BYOL):
    def after_step(self) -> None:
        super().after_step()
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            pass


def test_a_cell_has_its_time_and_goes_on_when_it_gets_more(paths: Paths, temporary: Any) -> None:
    temporary(methods, bad=Slow)
    only, step = "arms=[bad]", re.compile(r"at step \d of 6")
    (late,) = run(paths, only, limits=Limits(cell_seconds=1e-3))
    assert late.status == recorded(late, paths).status == "timeout"
    assert late.reason.endswith("0.001 s allowed, at step 0 of 6; with a longer limit it resumes there")
    (late,) = run(paths, only, limits=Limits(cell_seconds=1.0))
    assert late.status == "timeout"
    assert "at step 6 of 6" not in late.reason
    (again,) = run(paths, only, limits=Limits(cell_seconds=1.0))
    assert step.findall(again.reason) == step.findall(late.reason) != [], "seconds of all runs count: no step more"
    (done,) = run(paths, only, limits=Limits(cell_seconds=600))
    assert done.status == "done"
    found = recorded(done, paths)
    assert isinstance(found, Finished)
    ledger = found.ledger
    assert ledger.steps == 6
    assert ledger.seconds["train"] > 6 * 0.3, "those of the runs before are there"
    assert sum(ledger.seconds.values()) == pytest.approx(ledger.wall_seconds, rel=0.02)


def test_making_targets_takes_time_too(paths: Paths) -> None:
    arms = "arms=[{method: byol, rela: {prior: rand}}]"
    (late,) = run(paths, arms, limits=Limits(cell_seconds=1e-3))
    assert late.reason.endswith("0.001 s allowed, while making targets; with a longer limit it resumes there")
    assert not list(paths.cache.glob("targets/*.safetensors"))
    assert run(paths, arms)[0].status == "done"


def test_retry_runs_just_those_it_names(paths: Paths, temporary: Any) -> None:
    temporary(methods, bad=Raises, oom=Python)
    arms = "arms=[bad, oom, {method: byol}, {name: user, method: simclr, rela: {prior: DIGITS-T}}]"
    failed, oom, *_ = run(paths, arms)
    tasks = tasks_of(paths, arms)
    assert with_status(tasks, paths, ["failed"]) == tasks[:1]
    assert with_status(tasks, paths, ["failed", "oom"]) == tasks[:2]
    assert with_status(tasks, paths, ["timeout"]) == []
    path = record_path(paths.records, tasks[3].id)
    found = read_record(path)
    assert isinstance(found, Finished)
    same = {name: getattr(found, name) for name in Failed.model_fields if name not in {"status", "error"}}
    late = Failed(status="timeout", error="late", **same)
    write_record(late, paths.records)
    assert with_status(tasks, paths, ["timeout"]) == tasks[2:], "with what it needs"
    assert (failed.status, oom.status) == ("failed", "oom")


def test_a_mistake_in_retry_is_named() -> None:
    with pytest.raises(UserError, match="--retry faild: no such status; did you mean 'failed'"):
        check_retry(["faild"], False)


class Killer(Bad):
    """Ends the processes that decode images."""

    def harm(self) -> None:
        for worker in multiprocessing.active_children():
            assert worker.pid
            os.kill(worker.pid, signal.SIGKILL)


@pytest.fixture
def _streams(tmp_path: Path, temporary: Any) -> Iterator[None]:
    class Streams(DatasetInfo):
        title, short, streams = "Streams", "STR", True

    images(tmp_path, 64)
    temporary(datasets, streams=Streams)
    yield
    dataset_cache.clear()


@pytest.mark.slow
@pytest.mark.usefixtures("_streams")
def test_a_killed_worker_fails_its_cell_with_a_clear_sentence(paths: Paths, temporary: Any) -> None:
    """Also after another loader, a plugin's, say, has had torch watch over workers from then on."""
    assert len(list(DataLoader([1, 2], num_workers=1))) == 2  # type: ignore[arg-type]
    temporary(methods, bad=Killer)
    settings = ("datasets=[streams]", "arms=[bad, simclr]", "protocol.epochs=30")
    bad, good = run(paths, *settings, workers=1)
    assert (bad.status, good.status) == ("failed", "done")
    assert bad.reason == (
        "a process that decodes images ended with code -9 (Killed); where memory is short, fewer --workers help"
    )


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small /dev/shm")
def test_a_record_names_full_shared_memory(paths: Paths) -> None:
    """In a namespace whose /dev/shm does not hold a batch: that is said, and without workers the cell is done."""
    root = paths.results.parent
    images(root, 64)
    (root / "tiny.yaml").write_text(GRID)
    (root / "streams.py").write_text(STREAM)
    settings = ("datasets=[streams]", "arms=[simclr]", "protocol.input_size=64", "protocol.epochs=1")
    words = [sys.executable, "-m", "bench", "run", "--grid", root / "tiny.yaml", "--plugin", root / "streams.py"]
    words += ["--data-root", paths.data, "--results", paths.results, "--device", "cpu"]
    words += [word for setting in settings for word in ("--set", setting)]

    def end(workers: int) -> tuple[int, str | None]:
        command = f"mount -t tmpfs -o size=64k none /dev/shm && {shlex.join(map(str, words))} --workers {workers}"
        code = subprocess.run(["unshare", "-m", "sh", "-c", command], cwd=ROOT, check=False).returncode
        (record,) = map(read_record, paths.records.glob("*.json"))
        return code, record.error if isinstance(record, Failed) else None

    code, error = end(1)
    assert code == 1
    assert error
    assert re.search(r"unable to .* No space left on device .*; where shared memory is full, fewer --workers", error)
    assert end(0) == (0, None)


def test_nothing_of_the_environment_is_kept(paths: Paths, monkeypatch: pytest.MonkeyPatch, temporary: Any) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "marker-3141592653")
    temporary(methods, bad=Raises)
    assert [outcome.status for outcome in run(paths)] == ["failed", "done"]
    files = [path for path in paths.results.rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert not [path for path in files if b"marker-3141592653" in path.read_bytes()]
