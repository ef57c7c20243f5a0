"""How much cells side by side gain: `pytest tests/speed/test_throughput.py -m slow --benchmark-enable -s`.

Two cells of `cifar_small` on 1,000 real images, as a whole command each time, in three ways that take turns: one cell
after the other on one thread, on all threads, and side by side on their shares of the cores. As a test, in few steps.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.run.executors.local import cores
from bench.store.record import Finished, read_records

ROOT = Path(__file__).parent.parent.parent
WAYS = {
    "one after the other, 1 thread": ((), {"OMP_NUM_THREADS": "1"}),
    "one after the other, all threads": ((), {}),
    "side by side, --jobs 2": (("--jobs", "2"), {}),
}


@dataclass(frozen=True)
class Took:
    """Seconds of a command, and of its cells: their sum, or the longest one's where they ran side by side."""

    command: float
    cells: float


def take(way: str, data: Path, results: Path, epochs: int) -> Took:
    options, threads = WAYS[way]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = ["--grid", "cifar_small", "--only", "arm=byol,budget=1.0", "--device", "cpu", "--data-root", str(data)]
    for setting in ("datasets=[{name: cifar10, train_images: 1000}]", "seeds=[0, 1]", f"protocol.epochs={epochs}"):
        words += ["--set", setting]
    began = perf_counter()
    subprocess.run(
        [sys.executable, "-m", "bench", "run", *words, "--results", str(results), *options],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)} | threads,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    took = perf_counter() - began
    records, _ = read_records(results / "cifar_small")
    assert len(records) == 2
    assert {record.status for record in records} == {"done"}
    spent = [record.ledger.wall_seconds for record in records]
    return Took(took, max(spent) if options else sum(spent))


@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="needs two cores")
@pytest.mark.benchmark(group="two cells, three ways in turn")
def test_cells_side_by_side(cifar10_jpeg: Path, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    epochs, rounds = (20, 3) if benchmark.enabled else (1, 1)
    found: dict[str, list[Took]] = {way: [] for way in WAYS}

    def everything() -> None:
        take(next(iter(WAYS)), cifar10_jpeg, tmp_path / "first", 1)  # decodes the images
        for turn in range(rounds):
            for number, way in enumerate(WAYS):
                found[way].append(take(way, cifar10_jpeg, tmp_path / f"{turn}-{number}", epochs))

    benchmark.pedantic(everything, rounds=1)
    tell(found)
    scores = [scores_of(tmp_path / f"0-{number}") for number in (0, 2)]
    if cores() == 2:
        assert scores[0] == scores[1], "of one thread each, bit for bit"


def scores_of(results: Path) -> Mapping[str, object]:
    records: list[Finished] = read_records(results / "cifar_small")[0]
    return {record.id: [(point.loss, point.weight_norm, point.score) for point in record.curve] for record in records}


def tell(found: Mapping[str, list[Took]]) -> None:
    *others, together = WAYS
    for way, all_took in found.items():
        print(f"\n{way}:", *(f"{took.command:.1f} s, cells {took.cells:.1f} s;" for took in all_took))
    for way in others:
        for what in ("command", "cells"):
            ratios = [getattr(a, what) / getattr(b, what) for a, b in zip(found[way], found[together], strict=True)]
            print(
                f"{way}, over side by side, {what}: {statistics.median(ratios):.2f} times, median of {len(ratios)}"
                f" ({min(ratios):.2f} to {max(ratios):.2f})"
            )
