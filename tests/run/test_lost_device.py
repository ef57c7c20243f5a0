"""A GPU that no longer responds to its process, as after an assertion in a kernel, costs one cell and no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.core.device import find_device
from bench.core.errors import OutOfMemory, UserError
from bench.measure.memory import is_out_of_memory
from bench.store.record import read_records
from tests.run.processes import ROOT

GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
arms: [{method: byol}, {method: asserts}, {method: simclr}]
protocol: {epochs: 2, batch_size: 32, input_size: 8, probe: {epochs: 3}, knn: {k: 5}}
"""
# On a CPU nothing is ever lost: what CUDA does to a process is told to the runner by the method that does it.
PLUGIN = """
import bench.run.attempt
from methods import methods
from methods.byol import BYOL

@methods.register("asserts")
class Asserts(BYOL):
    def after_step(self):
        bench.run.attempt.is_lost = lambda device: True
        raise RuntimeError("CUDA error: device-side assert triggered")
"""


def run(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    (folder / "lost.yaml").write_text(GRID)
    (folder / "asserts.py").write_text(PLUGIN)
    words = [
        *("run", "--grid", "lost.yaml", "--plugin", "asserts.py", "--device", "cpu", "--results", "results"),
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--jobs", "2")])
def test_another_process_takes_the_place_of_one_that_has_lost_its_gpu(options: tuple[str, ...], tmp_path: Path) -> None:
    ran = run(tmp_path, *options)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "another one takes over" in ran.stdout or "another takes its place" in ran.stdout
    records, damaged = read_records(tmp_path / "results" / "lost")
    assert {record.cell.arm: (record.status, getattr(record, "error", None)) for record in records} == {
        "byol": ("done", None),
        "asserts": ("failed", "RuntimeError: CUDA error: device-side assert triggered"),
        "simclr": ("done", None),
    }
    assert not damaged
    logs = (tmp_path / "results" / "lost" / ".work").glob("*/events.jsonl")
    starts = [sum(json.loads(line)["event"] == "start" for line in log.read_text().splitlines()) for log in logs]
    assert max(starts) <= 2, "no process after the other is lost to the same cell"


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_too_little_memory_is_known_whatever_library_says_it(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ValueError(said))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert is_out_of_memory(OutOfMemory("known already"))


def test_fp32_is_fp32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert find_device("cuda").type == "cuda"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_more_processes_than_gpus_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "MASTER_ADDR": "localhost"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"^LOCAL_RANK is 1, and torch sees 1 GPUs here: start at most 1 processes$"):
        find_device("cuda")
