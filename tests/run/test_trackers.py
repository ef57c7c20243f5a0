"""Trackers at work on real cells: each value once, whatever ends a run, and no harm to the cell, whatever they do."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from bench.core.errors import Interrupted
from bench.core.paths import Paths
from bench.core.registry import load_plugin
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.models.weights import read_state
from bench.plan.graph import Ready, plan
from bench.run import tracking
from bench.run.attempt import attempt
from bench.run.request import RunRequest
from bench.run.trackers import Run, Tracker, trackers
from bench.run.tracking import Tracked
from bench.store.record import Finished
from bench.train.keeper import Hooks, Limits
from tests.run.processes import ROOT, Forks, bench, folder

GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 96}]
seeds: [3]
arms: [byol]
protocol:
  {epochs: 4, batch_size: 32, input_size: 8, schedule: cosine, evaluate_at: [0.4], probe: {epochs: 2}, knn: {k: 5}}
"""
EPOCHS, EVALUATIONS = [3, 6, 9, 12], [5, 12]
SPENT = sorted({*EPOCHS, *EVALUATIONS})
CPU = torch.device("cpu")
TEXT = (ROOT / "docs" / "tracking.md").read_text()
EXAMPLE = re.search(r"<!-- example: tracker -->\n```python\n(.*?)```", TEXT, re.DOTALL)
Rows = dict[str, list[tuple[int, float]]]


def made(path: Path) -> tuple[Ready, Paths]:
    """Return the cell of a new folder."""
    cells = expand(load_grid(str(folder(path, GRID) / "tiny.yaml")))
    paths = Paths(data=path / "data", results=path / "results", grid="tiny")
    (task,) = plan(cells, cells, paths, "grid tiny")
    assert isinstance(task, Ready)
    return task, paths


def train(made: tuple[Ready, Paths], track: str | None, stop_at: int = 0) -> tuple[Any, list[str]]:
    """Run a cell, as far as it was asked to, and return what became of it and the warnings."""
    warnings: list[str] = []
    steps: list[int] = []

    def event(name: str, facts: dict[str, Any]) -> None:
        warnings.extend([facts["why"]] if name == "untracked" else [])

    watch = Hooks(lambda step, *_: steps.append(step), event, lambda: bool(steps) and steps[-1] == stop_at)
    try:
        return attempt(*made, CPU, 0, watch, Limits(), track), warnings
    except Interrupted:
        return None, warnings
    finally:
        if wandb := sys.modules.get("wandb"):
            wandb.teardown()  # as at the end of a process: its own writes the file until then


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, dict[str, torch.Tensor]]:
    """The record and the weights of the cell without any tracker."""
    task, paths = made(tmp_path_factory.mktemp("untracked") / "run")
    record, _ = train((task, paths), None)
    return record, read_state(paths.backbone(task.id))


@pytest.fixture
def lines(temporary: Callable[..., None], tmp_path: Path) -> None:
    """Know the example of the docs, as a plugin."""
    temporary(trackers)
    assert EXAMPLE
    (tmp_path / "my_tracker.py").write_text(EXAMPLE[1])
    load_plugin(tmp_path / "my_tracker.py")


def by_name(rows: list[dict[str, float]]) -> Rows:
    names = {name for row in rows for name in row} - {"step"}
    return {name: [(int(row["step"]), row[name]) for row in rows if name in row] for name in names}


def in_lines(there: Path, task: Ready) -> Rows:
    return by_name([json.loads(line) for line in (there / f"{task.id}.jsonl").read_text().splitlines()])


def in_tensorboard(there: Path, task: Ready) -> Rows:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(there / f"digits_byol_100_seed_3_{task.id}")).Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def in_mlflow(there: Path, task: Ready) -> Rows:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(there.as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("digits byol 100% seed 3", "FINISHED")
    assert (run.data.params["arm"], run.data.params["protocol.probe.epochs"]) == ("byol", "2")
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(each.step, each.value) for each in values] for name, values in history.items()}


def in_wandb(there: Path, task: Ready) -> Rows:
    from bench.run.trackers.wandb import read_rows

    first, second = sorted((there / "wandb").glob(f"offline-run-*-{task.id}*/run-{task.id}.wandb"))
    return by_name([*read_rows(first), *read_rows(second)])


READ = {"lines": in_lines, "tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


@pytest.fixture
def no_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide what the user has set for MLflow and W&B."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 100.0)  # a busy machine is none of a tracker's faults


@pytest.mark.slow
@pytest.mark.usefixtures("lines", "no_accounts")
@pytest.mark.parametrize("name", READ)
def test_each_value_is_there_once_after_an_interruption_and_the_weights_are_those_without(
    name: str, tmp_path: Path, untracked: tuple[Finished, dict[str, torch.Tensor]], capfd: pytest.CaptureFixture[str]
) -> None:
    cell = task, paths = made(tmp_path / "run")
    assert train(cell, name, stop_at=7) == (None, [])
    if name == "lines":  # as if a kill had come after the checkpoint, and before the rest was written
        path = paths.tracking(name) / f"{task.id}.jsonl"
        path.write_text(path.read_text().partition("\n")[0] + "\n")
    record, warnings = train(cell, name)
    assert warnings == []
    assert capfd.readouterr() == ("", "")
    rows = READ[name](paths.tracking(name), task)
    steps = {name: [step for step, _ in values] for name, values in rows.items()}
    assert [steps.pop(name) for name in ("linear", "knn")] == [EVALUATIONS, EVALUATIONS]
    assert steps == dict.fromkeys(["loss", "lr", "seconds", "flops"], SPENT)
    one = {name: pytest.approx(dict(values), rel=1e-6) for name, values in rows.items()}
    curve = record.curve
    assert one["linear"] == {point.step: sum(point.score.linear) / len(point.score.linear) for point in curve}
    assert one["knn"] == {point.step: point.score.knn for point in curve}
    assert one["flops"] == {step: step * record.ledger.flops / 12 for step in SPENT}
    assert one["lr"] == {step: 1e-3 * (1 + math.cos(math.pi * (step - 1) / 11)) / 2 for step in SPENT}
    assert {step: dict(rows["loss"])[step] for step in EVALUATIONS} == pytest.approx({p.step: p.loss for p in curve})
    assert one["seconds"] == dict(rows["seconds"]) | {5: curve[0].seconds}
    assert [seconds for _, seconds in rows["seconds"]] == sorted(seconds for _, seconds in rows["seconds"])
    assert curve[-1].model_dump(exclude={"seconds", "other_load"}) == untracked[0].curve[-1].model_dump(
        exclude={"seconds", "other_load"}
    )
    weights = read_state(paths.backbone(task.id))
    assert all(torch.equal(weights[name], value) for name, value in untracked[1].items())


class Broken(Tracker):
    """Raises where a test says so."""

    at, error = "", BaseException()

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.reached("start")

    def reached(self, at: str) -> None:
        if at == self.at:
            raise self.error

    def last(self) -> dict[str, int]:
        self.reached("last")
        return {}

    def log(self, step: int, values: dict[str, float]) -> None:
        self.reached("log")

    def close(self, status: str) -> None:
        self.reached("close")


def follow(path: Path, name: str) -> list[str]:
    """Give a tracker what a cell gives it, and return the warnings."""
    warnings: list[str] = []
    tracked = Tracked(name, *made(path), warnings.append)
    tracked.put(3, {"loss": 0.5})
    tracked.close("done")
    return warnings


@pytest.mark.parametrize("error", [ValueError("on purpose"), SystemExit("on purpose")])
@pytest.mark.parametrize("at", ["start", "last", "log", "close"])
def test_a_tracker_that_raises_is_one_warning(
    at: str, error: BaseException, tmp_path: Path, temporary: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary(trackers, broken=Broken)
    monkeypatch.setattr(Broken, "at", at)
    monkeypatch.setattr(Broken, "error", error)
    assert follow(tmp_path / "run", "broken") == [f"broken: {type(error).__name__}: on purpose"]


@pytest.mark.parametrize("at", ["start", "log", "close"])
def test_a_tracker_that_hangs_is_left_alone(
    at: str, tmp_path: Path, temporary: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = Event()

    class Hangs(Broken):
        def reached(self, at: str) -> None:
            if at == self.at:
                free.wait()
                raise ValueError("nobody hears this")

    temporary(trackers, hangs=Hangs)
    monkeypatch.setattr(Hangs, "at", at)
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.01)
    warnings = follow(tmp_path / "run", "hangs")
    free.set()
    assert warnings == ["hangs still works 0.01 s after the end of the cell, and is left alone"]


def words(path: Path) -> list[str]:
    return ["run", "--grid", f"{path}/tiny.yaml", "--data-root", f"{path}/data", "--results", f"{path}/results"]


def test_a_warning_is_on_the_terminal_and_in_the_log_and_the_cell_is_done(
    tmp_path: Path, temporary: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary(trackers, broken=Broken)
    monkeypatch.setattr(Broken, "at", "log")
    monkeypatch.setattr(Broken, "error", OSError("no route to host"))
    task, paths = made(tmp_path / "run")
    ran = bench(*words(tmp_path / "run"), "--track", "broken", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert ran.out.count("  tracked no more: broken: OSError: no route to host\n") == 1
    assert "untracked: why broken: OSError: no route to host" in (paths.work(task.id) / "run.log").read_text()


def test_a_name_that_is_unknown_is_told_before_anything_runs(tmp_path: Path) -> None:
    _, paths = made(tmp_path / "run")
    ran = bench(*words(tmp_path / "run"), "--track", "tensorbord")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: unknown tracker 'tensorbord'; did you mean 'tensorboard'?\n"
    assert not paths.results.exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_missing_is_told_before_anything_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, paths = made(tmp_path / "run")
    for module in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    ran = bench(*words(tmp_path / "run"), "--track", name)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: --track {name}: needs the package {name}: pip install 'rela-bench[{name}]'\n"
    assert not paths.results.exists()


def test_other_processes_are_asked_to_track(tmp_path: Path) -> None:
    folder(tmp_path / "run", GRID)
    argv = RunRequest(f"{tmp_path}/run/tiny.yaml", track="mlflow").to_argv()
    assert argv[argv.index("--track") + 1] == "mlflow"
    assert "--track" not in RunRequest(f"{tmp_path}/run/tiny.yaml").to_argv()


@pytest.mark.slow
def test_a_rehearsal_is_not_tracked(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", GRID)
    ran = bench(*words(path), "--track", "tensorboard", "--rehearse")
    assert ran.code == 0, ran.err
    assert not list((path / "results").rglob("tracking"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--jobs", "2"], ["--gpus-per-cell", "2"]])
@pytest.mark.usefixtures("lines")
def test_of_several_processes_one_tracks_a_cell(options: list[str], tmp_path: Path, server: Forks) -> None:
    path = folder(tmp_path / "run", GRID.replace("[3]", "[3, 4]") if "--jobs" in options else GRID)
    plugin = ["--plugin", tmp_path / "my_tracker.py", "--track", "lines"]
    assert server.run(path, *options, *plugin) == 0, (path / "out").read_text()
    files = list((path / "results/tiny/tracking/lines").iterdir())
    assert len(files) == (2 if "--jobs" in options else 1)
    for file in files:
        rows = by_name([json.loads(line) for line in file.read_text().splitlines()])
        assert [step for step, _ in rows["loss"]] == SPENT
        assert [step for step, _ in rows["knn"]] == EVALUATIONS
