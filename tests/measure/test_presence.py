"""Cells that run at a time on one device know of one another, whoever started them."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core.machine import identity
from bench.core.paths import Places
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.presence import present
from bench.plan.graph import Task, plan
from bench.train import keeper
from bench.train.cell import run_cell
from bench.train.keeper import Hooks
from tests.run.processes import python

CPU = torch.device("cpu")
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
budgets: [1.0]
arms: [{method: byol}]
protocol: {epochs: 2, batch_size: 16, input_size: 8, probe: {epochs: 1}, knn: {k: 5}}
"""
RUNS = """
import os
import sys
from pathlib import Path
import torch
from bench.core.paths import Places
from bench.measure.presence import present
data, results, cell, *cores = sys.argv[1:]
if cores:
    os.sched_setaffinity(0, map(int, cores))
with present(Places(Path(data), Path(results), "mine"), cell, torch.device("cpu")) as cells:
    print(cells(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(tmp_path: Path, cell: str = "other", *cores: int) -> Iterator["subprocess.Popen[str]"]:
    """Another process that runs a cell of another folder of results; on all cores, or on some."""
    with python(RUNS, tmp_path / "data", tmp_path / "elsewhere", cell, *cores) as process:
        assert process.stdout
        process.stdout.readline()
        yield process


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "data", tmp_path / "results", "tiny")


@pytest.fixture
def task(tmp_path: Path, places: Places) -> Task:
    (tmp_path / "tiny.yaml").write_text(GRID)
    cells = expand(load_grid(str(tmp_path / "tiny.yaml")))
    return plan(cells, cells, places, "grid tiny")[0]


def notes(places: Places) -> list[Path]:
    return list((places.cache / "running").iterdir())


def cells_beside(task: Task, places: Places, watch: Hooks) -> int:
    ledger = run_cell(task, places, CPU, 0, watch).ledger
    assert ledger
    return ledger.side_by_side


def watch(until: "subprocess.Popen[str] | None" = None) -> Hooks:
    """A watch that sees to it that another process has ended after the first step."""

    def after(done: int, steps: int, loss: float) -> None:
        if until and done == 1:
            until.communicate()

    return Hooks(after, lambda *_: None, lambda: False)


def test_a_cell_is_alone_when_no_other_one_runs(task: Task, places: Places) -> None:
    assert cells_beside(task, places, watch()) == 1
    assert notes(places) == []


def test_cells_of_runners_on_other_results_count_until_they_end(tmp_path: Path, task: Task, places: Places) -> None:
    told: list[tuple[str, Any]] = []
    watch = Hooks(lambda *_: None, lambda *event: told.append(event), lambda: False)
    with another(tmp_path) as other:
        with present(places, "third", CPU):
            assert cells_beside(task, places, watch) == 3
        assert cells_beside(task, places, watch) == 2
        other.communicate()
    assert cells_beside(task, places, watch) == 1
    assert [facts["cells"] for name, facts in told if name == "company"] == [3, 2], "once in each cell that had some"


def test_a_cell_that_was_left_alone_has_had_company(tmp_path: Path, task: Task, places: Places) -> None:
    with another(tmp_path) as other:
        assert cells_beside(task, places, watch(until=other)) == 2


def test_one_that_comes_and_goes_within_a_phase_is_seen(
    tmp_path: Path, task: Task, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "LOOK_SECONDS", 0.0)
    with ExitStack() as company:

        def after(done: int, steps: int, loss: float) -> None:
            if done == 2:
                company.enter_context(another(tmp_path))
            if done == 4:
                company.close()
                assert len(notes(places)) == 1, "its own"

        assert cells_beside(task, places, Hooks(after, lambda *_: None, lambda: False)) == 2


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) == 1, reason="needs two cores to choose from"
)
def test_cells_on_cores_of_their_own_are_alone(tmp_path: Path, places: Places) -> None:
    all_cores = os.sched_getaffinity(0)
    one, two, *_ = all_cores
    try:
        with another(tmp_path, "other", two):
            os.sched_setaffinity(0, {one})
            with present(places, "apart", CPU) as cells:
                assert cells() == 1
            os.sched_setaffinity(0, {one, two})
            with present(places, "across", CPU) as cells:
                assert cells() == 2
    finally:
        os.sched_setaffinity(0, all_cores)


def test_processes_of_one_cell_are_one_cell(tmp_path: Path, places: Places) -> None:
    """As `torchrun` starts them."""
    with present(places, "cell", CPU) as cells, present(places, "cell", CPU):
        assert cells() == 1
        with present(places, "another", CPU):
            assert cells() == 2


def test_notes_of_other_machines_and_torn_ones_do_not_count(places: Places) -> None:
    with present(places, "cell", CPU) as cells, present(places, "another", CPU):
        assert cells() == 2
        for path in notes(places):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another"}))
        assert cells() == 1
        torn = notes(places)[0].read_text()[:20]
        for text in (torn, "", "7", "[" * 90_000, json.dumps(identity()), json.dumps({**identity(), "device": 7})):
            for path in notes(places):
                path.write_text(text)
            assert cells() == 1
        assert len(notes(places)) == 2


def test_a_cache_that_cannot_be_written_ends_no_cell(places: Places) -> None:
    places.data.mkdir()
    places.cache.write_text("a file")
    with present(places, "cell", CPU) as cells:
        assert cells() == 1


def test_a_killed_one_counts_no_more(tmp_path: Path, task: Task, places: Places) -> None:
    with another(tmp_path) as other:
        assert len(notes(places)) == 1
        other.kill()
    assert len(notes(places)) == 1
    assert cells_beside(task, places, watch()) == 1
    assert notes(places) == []
