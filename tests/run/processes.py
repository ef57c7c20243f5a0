"""What tests need that start runs of the command line as processes, end them, and compare what they leave."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from bench.cli.main import main

ROOT = Path(__file__).parent.parent.parent
ALWAYS = {"BENCH_CHECKPOINT_SECONDS": "0"}  # saves a cell after each step
TIMES = {"seconds", "wall_seconds", "peak_memory_bytes", "provenance", "energy", "side_by_side", "other_load"}
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 128}]
seeds: [3]
budgets: [0.5]
arms:
  - {method: byol, budgets: [1.0]}
  - {name: queue, method: moco, params: {queue: 64}, rela: {prior: rand, phase: 0.5}}
  - {name: trained, method: swav, rela: {prior: DIGITS-T}}
  - {name: matched, method: simclr, flops_of: queue}
protocol: {epochs: 4, batch_size: 32, input_size: 8, evaluate_at: [0.5], probe: {epochs: 3}, knn: {k: 5}}
"""
STREAM = """
from bench.data import DatasetInfo, datasets

@datasets.register("streams")
class Streams(DatasetInfo):
    title, short, streams = "Streams", "STR", True
"""


def python(script: str, *words: object) -> "subprocess.Popen[str]":
    """Start a script in a process of its own that sees the packages of this checkout."""
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def bench(*words: object) -> Ran:
    """Run the command line in this process, which has torch imported already."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["bench", *map(str, words)])
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


class Forks:
    """Runs of the command line, each in a process of its own."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(Path(__file__).parent / "forks.py")]
        self.server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, folder: Path, *options: str | Path, out: str = "out", **how: Any) -> int:
        """Start `run` on the grid and the data of a folder, and return the process's number."""
        paths = ["--data-root", folder / "data", "--results", folder / "results", "--device", "cpu"]
        words = [str(word) for word in ("run", "--grid", folder / "tiny.yaml", *paths, *options)]
        return self._ask({"run": words, "out": str(folder / out), "within": str(folder), **how})

    def wait(self, process: int) -> int:
        """Return the exit code of a process, minus the signal's number when one has ended it."""
        return self._ask({"wait": process})

    def run(self, folder: Path, *options: str | Path, **how: Any) -> int:
        """Run to the end and return the exit code."""
        return self.wait(self.start(folder, *options, **how))

    def _ask(self, order: dict[str, Any]) -> int:
        assert self.server.stdin
        assert self.server.stdout
        print(json.dumps(order), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())


@contextmanager
def forks() -> Iterator[Forks]:
    """Yield a server of processes."""
    found = Forks()
    try:
        yield found
    finally:
        assert found.server.stdin
        assert found.server.stdout
        found.server.stdin.close()
        found.server.stdout.close()
        found.server.wait(60)


def folder(path: Path, grid: str = GRID) -> Path:
    """Return a new folder with a grid."""
    path.mkdir(parents=True)
    (path / "tiny.yaml").write_text(grid)
    return path


def until(happens: Callable[[], object], seconds: float = 120, pause: float = 0.002) -> None:
    """Wait until something happens; fails when it does not."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)  # between two looks


def left(folder: Path, cached: bool = True) -> dict[str, Any]:
    """Return what runs have left, without times and their company, and without who made targets if not `cached`."""
    records = folder / "results" / "tiny"
    found: dict[str, Any] = {path.name: path.read_bytes() for path in (records / "backbones").iterdir()}
    for path in records.glob("*.json"):
        found[path.name] = _without(json.loads(path.read_text()), TIMES if cached else TIMES | {"cached"})
    return found


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value


def strays(folder: Path) -> list[str]:
    """Return the files below a folder that no run should leave."""
    files = [path for path in (folder / "results").rglob("*") if path.is_file()]
    known = (".json", ".jsonl", ".safetensors", "run.log")
    return sorted(p.name for p in files if not (p.name.endswith(known) or p.name.startswith("lock.")))


def events(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the events of each cell."""
    logs = (folder / "results" / "tiny" / ".work").glob("*/events.jsonl")
    return {log.parent.name: [json.loads(line) for line in log.read_text().splitlines()] for log in logs}


def images(folder: Path, count: int) -> None:
    """Write a dataset of small images that stream, and the plugin that registers it."""
    draw = np.random.default_rng(0)
    for split, images in (("train", count), ("test", 20)):
        for index in range(images):
            path = folder / "data" / "streams" / split / f"class{index % 2}" / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (10, 9, 3), dtype=np.uint8)).save(path)
    (folder / "streams.py").write_text(STREAM)
