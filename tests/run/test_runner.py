"""Whole cells on real digits: finished ones stay, failed ones harm nobody, interrupted ones go on bit by bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms as T
from torch import Tensor

from bench.core.errors import Interrupted
from bench.core.paths import Paths
from bench.data import load_dataset
from bench.data.augment import MEAN, STD, EvalView, View
from bench.data.images import part_of
from bench.data.loader import open_source
from bench.data.sampler import total_steps
from bench.evaluate.features import Features
from bench.evaluate.knn import knn_accuracy
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.models.weights import read_state
from bench.plan.graph import Task, plan
from bench.plan.stale import code_of
from bench.plan.state import Outcome, stale_text
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.store.record import Failed, Finished, read_record, record_path, write_record
from bench.targets.cache import load_targets
from bench.targets.reduce import reduce_features
from bench.train.cell import run_cell
from bench.train.keeper import Hooks
from methods import Batch, Method, methods
from methods.build import build_method

GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 200}]
seeds: [3]
budgets: [0.5]
arms:
  - {method: byol, budgets: [0.5, 1.0]}
  - {name: constant, method: byol, rela: {prior: rand, phase: 0.5}}
  - {name: trained, method: simclr, rela: {prior: DIGITS-T}}
protocol:
  {epochs: 3, batch_size: 32, input_size: 12, blur: false, evaluate_at: [0.5], probe: {epochs: 4}, knn: {k: 5}}
"""
CPU = torch.device("cpu")
Runs = Callable[..., list[Outcome]]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(GRID)
    return path


def tasks_of(grid: Path, paths: Paths, *settings: str) -> list[Task]:
    cells = expand(load_grid(str(grid), settings=settings))
    return plan(cells, cells, paths, "grid tiny")


def places_in(folder: Path) -> Paths:
    return Paths(data=folder / "data", results=folder / "results", grid="tiny")


def run(grid: Path, paths: Paths, *settings: str) -> list[Outcome]:
    return run_tasks(tasks_of(grid, paths, *settings), paths, CPU, 0, Display())


def record(task: Task, paths: Paths) -> Finished:
    found = read_record(record_path(paths.records, task.id))
    assert isinstance(found, Finished)
    return found


def what_was_learned(task: Task, paths: Paths) -> tuple[object, dict[str, Tensor]]:
    found = record(task, paths)
    curve = [(p.step, p.flops, p.loss, p.mean_losses, p.weight_norm, p.score) for p in found.curve]
    facts = (curve, found.switch_step, found.ledger.steps, found.ledger.images, found.ledger.flops)
    return facts, read_state(paths.backbone(task.id))


def assert_equal(one: tuple[object, dict[str, Tensor]], other: tuple[object, dict[str, Tensor]]) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(value, other[1][name]) for name, value in one[1].items())


def test_a_grid_runs_once_and_its_records_hold_together(grid: Path, tmp_path: Path) -> None:
    paths, schedule = places_in(tmp_path), "protocol.evaluations=3"
    outcomes = run(grid, paths, schedule)
    assert [(outcome.status, outcome.cached) for outcome in outcomes] == [("done", False)] * 4
    for outcome in outcomes:
        found = record(outcome.task, paths)
        ledger, steps = found.ledger, total_steps(found.cell, 200)
        assert ledger is not None
        assert ledger.steps == steps == found.curve[-1].step == {0.5: 9, 1.0: 18}[found.cell.budget]
        assert ledger.images == 32 * steps
        assert ledger.flops == found.curve[-1].flops > 0
        assert sum(ledger.seconds.values()) == pytest.approx(ledger.wall_seconds, rel=0.02)
        # At 18, 9 and 4.5 steps in both; and at a half of its own, which is one of them.
        assert [point.step for point in found.curve] == [5, 9, 18][: 1 + round(2 * found.cell.budget)]
        assert found.test_images == 360
        assert len(found.curve[-1].score.linear) == 3
        assert (ledger.targets is not None) == (found.cell.rela is not None)
        assert found.provenance["packages"]["torch"] == torch.__version__
    constant = record(outcomes[2].task, paths)
    assert constant.switch_step == 3, "half of three epochs, rounded down, is one epoch of three steps"
    before = {path: path.stat().st_mtime_ns for path in paths.records.rglob("*") if path.is_file()}
    again = run(grid, paths, schedule)
    assert [(outcome.status, outcome.cached) for outcome in again] == [("done", True)] * 4
    assert before == {path: path.stat().st_mtime_ns for path in paths.records.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_same_cell_gives_the_same_result_bit_for_bit(grid: Path, tmp_path: Path) -> None:
    first, second = places_in(tmp_path / "a"), places_in(tmp_path / "b")
    for outcome, other in zip(run(grid, first), run(grid, second), strict=True):
        assert outcome.task.id == other.task.id
        assert_equal(what_was_learned(outcome.task, first), what_was_learned(other.task, second))


def test_a_point_holds_the_mean_loss_of_each_kind_of_step_since_the_one_before(grid: Path, tmp_path: Path) -> None:
    paths = places_in(tmp_path)
    settings = ("datasets=[{name: digits, train_images: 64}]", "budgets=[0.5]", "protocol.epochs=6")
    task = next(task for task in tasks_of(grid, paths, *settings) if task.cell.arm == "constant")
    losses: list[float] = []  # of every step: an epoch is one step
    watch = Hooks(lambda step, steps, loss: losses.append(loss), lambda name, facts: None, lambda: False)
    found = run_cell(task, paths, CPU, 0, watch)
    first, last = found.curve
    assert first.mean_losses == {"rela": pytest.approx(sum(losses[:3]) / 3, rel=1e-6)}
    assert last.mean_losses == {"method": pytest.approx(sum(losses[3:]) / 3, rel=1e-6)}


def test_a_point_holds_the_norm_of_what_is_trained(grid: Path, tmp_path: Path) -> None:
    paths = places_in(tmp_path)
    task = next(task for task in tasks_of(grid, paths, "protocol.epochs=1", "protocol.lr=1e-12") if task.cell.rela)
    found = run_cell(task, paths, CPU, 0, Hooks(lambda *facts: None, lambda *facts: None, lambda: False))
    method = build_method(task.cell, 12, 128, 3)
    squares = [
        p.square().sum().item() for name, p in method.named_parameters() if "teacher" not in name and "map" not in name
    ]
    assert found.curve[-1].weight_norm == pytest.approx(sum(squares) ** 0.5, rel=1e-5)


CONTROLS = """
  - {name: shuffled, method: byol, rela: {prior: rand, shuffle: true}}
  - {name: matched, method: byol, flops_of: constant}
protocol:"""


@pytest.mark.slow
def test_a_flop_matched_arm_stops_where_the_other_arms_flops_are_spent(grid: Path, tmp_path: Path) -> None:
    grid.write_text(GRID.replace("\nprotocol:", CONTROLS))
    paths = places_in(tmp_path)
    ran = run(grid, paths, "protocol.batch_size=16")
    outcomes = {(o.task.cell.arm, o.task.cell.budget): record(o.task, paths) for o in ran}
    constant, matched, plain = (outcomes[arm, 0.5].ledger for arm in ("constant", "matched", "byol"))
    assert constant is not None
    assert matched is not None
    assert plain is not None
    assert constant.targets is not None
    spent = constant.flops + constant.targets.flops
    step = plain.flops // plain.steps
    assert matched.steps == spent // step < plain.steps
    assert spent // step > constant.flops // step, "here the targets are worth a step"
    assert spent - step < matched.flops <= spent


def test_a_flop_matched_arm_waits_for_the_other_and_is_another_cell(grid: Path, tmp_path: Path) -> None:
    grid.write_text(GRID.replace("\nprotocol:", CONTROLS))
    paths = places_in(tmp_path)
    cells = expand(load_grid(str(grid)))
    tasks = plan(cells, [cell for cell in cells if cell.arm == "matched"], paths, "grid tiny")
    assert [task.cell.arm for task in tasks] == ["constant", "matched"]
    assert tasks[1].needs is tasks[0]
    assert len({task.id for task in tasks_of(grid, paths)}) == len(cells) == 6


def test_shuffled_targets_are_those_of_other_images_and_cost_the_same(grid: Path, tmp_path: Path) -> None:
    arms = "arms=[{method: byol, rela: {prior: rand}}, {name: s, method: byol, rela: {prior: rand, shuffle: true}}]"
    paths = places_in(tmp_path)
    outcomes = run(grid, paths, arms)
    one, other = (record(outcome.task, paths) for outcome in outcomes)
    assert one.ledger.flops == other.ledger.flops
    assert one.curve[-1].loss != other.curve[-1].loss
    assert other.ledger.targets is not None
    assert other.ledger.targets.cached, "they are the same targets in another order"


def test_the_trainer_moves_every_weight_of_the_backbone(grid: Path, tmp_path: Path) -> None:
    paths = places_in(tmp_path)
    for outcome in run(grid, paths, "arms=[byol, {method: byol, rela: {prior: rand}}]"):
        initial = build_method(outcome.task.cell, 12, 4, 1).backbone
        trained = read_state(paths.backbone(outcome.task.id))
        assert [name for name, weight in initial.named_parameters() if torch.equal(weight, trained[name])] == []


ONLY = "arms=[{name: constant, method: byol, rela: {prior: rand, phase: 0.5}}]"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "tiny.yaml").write_text(GRID)
    (outcome,) = run(folder / "tiny.yaml", whole := places_in(folder), ONLY)
    return what_was_learned(outcome.task, whole)


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 9])
def test_an_interrupted_cell_goes_on_as_if_nothing_had_happened(
    stop_at: int, grid: Path, tmp_path: Path, unbroken: object
) -> None:
    paths = places_in(tmp_path)
    (task,) = tasks_of(grid, paths, ONLY)
    steps: list[int] = []
    watch = Hooks(lambda step, *_: steps.append(step), lambda *_: None, lambda: len(steps) == stop_at)
    with pytest.raises(Interrupted):
        run_cell(task, paths, CPU, 0, watch)
    (resumed,) = run(grid, paths, ONLY)
    assert resumed.status == "done"
    assert_equal(what_was_learned(task, paths), unbroken)
    found = record(task, paths).ledger
    assert found is not None
    assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds, rel=0.02)


def test_a_checkpoint_of_another_cell_or_a_damaged_one_is_not_used(grid: Path, tmp_path: Path) -> None:
    paths, whole = places_in(tmp_path / "cut"), places_in(tmp_path / "whole")
    only = "arms=[{method: byol, budgets: [0.5]}]"
    (task,) = tasks_of(grid, paths, only)
    paths.work(task.id).mkdir(parents=True)
    (paths.work(task.id) / "checkpoint.pt").write_bytes(b"not a checkpoint")
    (outcome,) = run(grid, paths, only)
    run(grid, whole, only)
    assert outcome.status == "done"
    assert_equal(what_was_learned(task, paths), what_was_learned(task, whole))
    assert (paths.work(task.id) / "checkpoint.pt.damaged").read_bytes() == b"not a checkpoint"


@pytest.fixture
def broken(temporary: Any) -> None:
    """Register a method that raises and one whose loss is not a number, for one test."""
    temporary(methods)

    @methods.register("raises")
    class Raises(Method):
        views = (View(), View())

        def loss(self, batch: Batch) -> Tensor:
            raise ValueError("on purpose")

    @methods.register("nan")
    class Nan(Raises):
        def loss(self, batch: Batch) -> Tensor:
            return self.backbone(batch.views[0]).sum() * float("nan")


@pytest.mark.usefixtures("broken")
def test_a_failure_is_recorded_and_the_grid_goes_on(grid: Path, tmp_path: Path) -> None:
    paths = places_in(tmp_path)
    arms = "arms=[raises, nan, {method: byol, budgets: [0.5]}]"
    outcomes = run(grid, paths, arms)
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "done"]
    assert outcomes[0].reason == "ValueError: on purpose"
    assert outcomes[1].reason == "the loss is nan at step 3"
    failed = read_record(record_path(paths.records, outcomes[0].task.id))
    assert isinstance(failed, Failed)
    assert failed.error == "ValueError: on purpose"
    assert "on purpose" in (paths.work(outcomes[0].task.id) / "run.log").read_text()
    again = run(grid, paths, arms)
    assert [outcome.cached for outcome in again] == [False, False, True], "a failure is not cached"


@pytest.mark.usefixtures("broken")
def test_what_needs_a_failed_cell_is_skipped_and_says_why(grid: Path, tmp_path: Path, temporary: Any) -> None:
    paths = places_in(tmp_path)
    temporary(methods, byol=methods.get("raises"))
    outcomes = run(grid, paths, "arms=[{method: byol, budgets: [1.0]}, {method: simclr, rela: {prior: DIGITS-T}}]")
    assert [outcome.status for outcome in outcomes] == ["failed", "skipped"]
    assert outcomes[1].reason == f"the cell {outcomes[0].task.id} that it needs is failed"


@pytest.mark.slow
def test_a_lost_backbone_that_a_cell_needs_is_trained_again(grid: Path, tmp_path: Path) -> None:
    paths = places_in(tmp_path)
    outcomes = run(grid, paths)
    maker, user = outcomes[1].task, outcomes[3].task
    assert user.needs is not None
    assert user.needs.id == maker.id
    paths.backbone(maker.id).unlink()
    assert all(outcome.cached for outcome in run(grid, paths)), "nobody needs it"
    record_path(paths.records, user.id).unlink()
    assert [outcome.cached for outcome in run(grid, paths)] == [True, False, True, False]
    assert paths.backbone(maker.id).is_file()


def test_a_missing_dataset_skips_its_cells_only(grid: Path, tmp_path: Path) -> None:
    paths = places_in(tmp_path)
    settings = ("datasets=[{name: cifar10, train_images: 200}, {name: digits, train_images: 200}]", "arms=[byol]")
    outcomes = run(grid, paths, *settings)
    assert [outcome.status for outcome in outcomes] == ["skipped", "done"]
    assert str(paths.data / "cifar10") in outcomes[0].reason


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_and_is_another_cell(precision: str, grid: Path, tmp_path: Path) -> None:
    paths = places_in(tmp_path)
    arms = "arms=[{method: byol, rela: {prior: rand, phase: 0.4}}]"
    (outcome,) = run(grid, paths, arms, f"protocol.precision={precision}")
    assert outcome.status == "done", outcome.reason
    assert outcome.task.id != tasks_of(grid, paths, arms)[0].id


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_prior_in_reduced_precision_makes_targets_of_its_own(precision: str, grid: Path, tmp_path: Path) -> None:
    """Those of its network under autocast, in a file of their own, for a cell of its own."""
    paths, made = places_in(tmp_path), dict[str, tuple[Task, Tensor]]()
    for each in ("fp32", precision):
        (outcome,) = run(grid, paths, f"arms=[{{method: byol, rela: {{prior: rand, precision: {each}}}}}]")
        assert outcome.status == "done", outcome.reason
        found = [load_targets(path, 200) for path in (paths.cache / "targets").glob("*.safetensors")]
        (targets,) = [each for each in found if each and each.maker == outcome.task.id]
        assert isinstance(targets.values, Tensor)
        made[each] = outcome.task, targets.values
    task, values = made[precision]
    assert task.prior
    data = part_of(load_dataset("digits", paths), task.cell).train
    (images,) = open_source(data, 12, CPU, 0).eval_batches(EvalView(12))
    with torch.no_grad(), torch.autocast("cpu", {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]):
        features = task.prior.model().to(memory_format=torch.channels_last).eval()(images)
    torch.testing.assert_close(values, reduce_features(features.float(), 128)[0])
    assert not torch.allclose(values, made["fp32"][1], atol=1e-3)


def test_evaluation_takes_the_centres_of_larger_images_where_the_protocol_says_so(grid: Path, tmp_path: Path) -> None:
    paths = places_in(tmp_path)
    (outcome,) = run(grid, paths, "arms=[{method: byol}]", "protocol.eval_resize=30")
    task, data = outcome.task, part_of(load_dataset("digits", paths), outcome.task.cell)
    backbone = build_method(task.cell, 12, None, 1).backbone.eval()
    backbone.load_state_dict(read_state(paths.backbone(task.id)))
    transform = T.Compose([T.Resize(30, antialias=True), T.CenterCrop(12), T.Normalize(MEAN, STD)])

    @torch.no_grad()
    def neighbours(resized: T.Compose) -> float:
        images = [resized(torch.from_numpy(split.images) / 255) for split in (data.train, data.test)]
        labels = [torch.from_numpy(split.labels) for split in (data.train, data.test)]
        train, test = map(backbone, images)
        return knn_accuracy(Features(train, labels[0], test, labels[1]), data.classes, task.cell.protocol.knn)

    final = record(task, paths).final
    assert final
    assert final.knn == pytest.approx(neighbours(transform), abs=0.005)
    assert final.knn != pytest.approx(neighbours(T.Compose([T.Resize(12), *transform.transforms[2:]])), abs=0.005)


def test_a_record_knows_its_code_and_a_stale_one_is_named_with_its_files(
    grid: Path, tmp_path: Path, temporary: Callable[..., None]
) -> None:
    paths = Paths(tmp_path / "data", tmp_path / "results", "tiny")
    tasks = tasks_of(grid, paths, "arms=[byol]")
    run_tasks(tasks, paths, CPU, 0, Display())
    record = read_record(record_path(paths.records, tasks[0].id))
    assert isinstance(record, Finished)
    assert record.code == code_of(record.cell)
    assert record.code.keys() == {"method", "views", "training", "backbone", "evaluation"}
    assert stale_text(tasks, paths) == ""
    write_record(record.model_copy(update={"code": {**record.code, "method": "0" * 16}}), paths.records)
    said = stale_text(tasks, paths)
    assert said.startswith(
        "1 finished cell is stale: the code of method has changed since. What is stale counts as done"
    )
    assert said.endswith(f"  rm -r {paths.records}/{record.id}.json\n")
    assert [outcome.cached for outcome in run_tasks(tasks, paths, CPU, 0, Display())] == [True]
    temporary(methods, byol=type("Newer", (methods.get("byol"),), {"version": 2}))
    fresh = tasks_of(grid, paths, "arms=[byol]")
    assert stale_text(fresh, paths) == "1 to run anew: method byol is of version 2, and was of 1\n"
