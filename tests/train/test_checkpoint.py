"""Checkpoints and records that cannot be trusted are set aside with a sentence, and the cell runs anew."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core.errors import Interrupted
from bench.core.paths import Paths
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.models.weights import read_state
from bench.plan.graph import Task, plan
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.store.record import Point, Score, read_record, record_path
from bench.train import checkpoint as checkpoints
from bench.train.cell import run_cell
from bench.train.checkpoint import Checkpoint, checkpoint_path, load_checkpoint, save_checkpoint
from bench.train.keeper import Hooks
from methods import methods
from methods.byol import BYOL

CPU = torch.device("cpu")
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
arms: [{name: it, method: byol}]
protocol: {epochs: 3, batch_size: 32, input_size: 8, probe: {epochs: 3}, knn: {k: 5}}
"""
POINT = Point(step=1, images=2, flops=10**17, seconds=0.1, loss=0.3, score=Score(linear=(0.1,), knn=0.2))
WEIGHTS = {"step": 3, "weights": torch.arange(100_000.0)}
SAVED = Checkpoint({"train": 1.5}, {"train": 90.0}, 2.5, 10**9, (POINT,), WEIGHTS)


def places_in(folder: Path) -> Paths:
    return Paths(folder / "data", folder / "results", "tiny")


def task_of(paths: Paths) -> Task:
    path = paths.results.parent / "tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(GRID)
    (task,) = plan(cells := expand(load_grid(str(path))), cells, paths, "grid tiny")
    return task


def stop_at(task: Task, paths: Paths, step: int) -> Path:
    steps: list[int] = []
    watch = Hooks(lambda step, *_: steps.append(step), lambda *_: None, lambda: len(steps) == step)
    with pytest.raises(Interrupted):
        run_cell(task, paths, CPU, 0, watch)
    return checkpoint_path(paths, task.id)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "checkpoint.pt"
    assert load_checkpoint(path, "a") is None
    save_checkpoint(path, "a", SAVED)
    found = load_checkpoint(path, "a")
    assert found is not None
    assert found.trainer
    assert SAVED.trainer
    assert torch.equal(found.trainer.pop("weights"), SAVED.trainer["weights"])
    assert found.trainer == {"step": 3}
    assert (found.seconds, found.wall, found.peak, found.curve) == ({"train": 1.5}, 2.5, 10**9, (POINT,))
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def flip(raw: bytes) -> bytes:
    """Change a weight, which torch's reader would not notice."""
    return raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip, "a damaged checkpoint"),
        (lambda raw: raw[:-1], "not a checkpoint"),
        (lambda raw: raw[: len(raw) // 2], "not a checkpoint"),
        (lambda raw: b"", "not a checkpoint"),
        (lambda raw: b"x" * 1000, "not a checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside(
    damage: Callable[[bytes], bytes], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    kept = []
    for end in ("damaged", "damaged.2"):
        save_checkpoint(path, "a", SAVED)
        path.write_bytes(damage(path.read_bytes()))
        kept.append(path.read_bytes())
        assert load_checkpoint(path, "a") is None
        assert capsys.readouterr().err == f"{path}: {why}; set aside as checkpoint.pt.{end}\n"
    assert [file.read_bytes() for file in sorted(tmp_path.iterdir())] == kept


def test_a_stale_checkpoint_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, "a", SAVED)
    assert load_checkpoint(path, "b") is None
    save_checkpoint(path, "a", SAVED)
    monkeypatch.setattr(checkpoints, "VERSION", 99)
    assert load_checkpoint(path, "a") is None
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: the checkpoint of another cell; set aside as checkpoint.pt.stale",
        f"{path}: a checkpoint of version 2 where 99 is known; set aside as checkpoint.pt.stale.2",
    ]


def test_a_method_that_has_changed_begins_anew(
    tmp_path: Path, temporary: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its author forgot to raise the version: nothing of the old state is taken, not even the parts that fit."""

    class Changed(BYOL):
        @wraps(BYOL.__init__)  # with the same parameters
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self.projector.register_buffer("more", torch.zeros(3))

    cut, whole = places_in(tmp_path / "cut"), places_in(tmp_path / "whole")
    path = stop_at(task_of(cut), cut, 4)
    temporary(methods, byol=Changed)
    states = []
    for paths in (cut, whole):
        (outcome,) = run_tasks([task_of(paths)], paths, CPU, 0, Display())
        assert outcome.status == "done", outcome.reason
        states.append(read_state(paths.backbone(outcome.task.id)))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert path.with_name("checkpoint.pt.stale").is_file()
    assert "does not fit method 'byol' as it is now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "its settings do not hash to its id"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 7'), "schema version 7 where 1 is known"),
        (lambda text: "", "not valid JSON"),
    ],
)
def test_a_damaged_record_is_set_aside_and_the_cell_runs_again(
    damage: Callable[[str], str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = places_in(tmp_path)
    task = task_of(paths)
    path = record_path(paths.records, task.id)
    kept = []
    for end in ("damaged", "damaged.2"):
        run_tasks([task], paths, CPU, 0, Display())
        text = damage(path.read_text())
        assert text != path.read_text()
        path.write_text(text)
        kept.append(text)
        capsys.readouterr()
        (outcome,) = run_tasks([task], paths, CPU, 0, Display())
        assert (outcome.status, outcome.cached) == ("done", False)
        assert capsys.readouterr().err == f"{path}: {why}; set aside as {path.name}.{end}\n"
    assert [path.with_name(f"{path.name}.{end}").read_text() for end in ("damaged", "damaged.2")] == kept
    assert json.loads(path.read_text())["status"] == read_record(path).status == "done"  # type: ignore[union-attr]


def test_damaged_targets_are_set_aside_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = places_in(tmp_path)
    path = paths.results.parent / "tiny.yaml"
    path.write_text(GRID.replace("method: byol", "method: byol, rela: {prior: rand}"))
    tasks = plan(cells := expand(load_grid(str(path))), cells, paths, "grid tiny")
    run_tasks(tasks, paths, CPU, 0, Display())
    (targets,) = paths.cache.glob("targets/*.safetensors")
    whole = targets.read_bytes()
    targets.write_bytes(flip(whole))
    record_path(paths.records, tasks[0].id).unlink()
    capsys.readouterr()
    (outcome,) = run_tasks(tasks, paths, CPU, 0, Display())
    assert outcome.status == "done"
    assert capsys.readouterr().err.endswith(f"set aside as {targets.name}.damaged\n")
    assert targets.with_name(f"{targets.name}.damaged").read_bytes() == flip(whole)
    assert targets.read_bytes()[-4096:] == whole[-4096:], "the same values"


def test_what_a_kill_has_left_of_a_finished_cell_is_removed(tmp_path: Path) -> None:
    """Killed after the record was written and before the checkpoint was removed."""
    paths = places_in(tmp_path)
    task = task_of(paths)
    path = stop_at(task, paths, 2)
    saved = path.read_bytes()
    run_tasks([task], paths, CPU, 0, Display())
    assert not path.exists()
    path.write_bytes(saved)
    (outcome,) = run_tasks([task], paths, CPU, 0, Display())
    assert outcome.cached
    assert not path.exists()
