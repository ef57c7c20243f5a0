"""A cell with an accelerator pays for all that it computes: choice, steps, targets, by a counter around all of it."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.core.errors import Interrupted, UserError
from bench.core.paths import Paths
from bench.data.images import open_images
from bench.data.loader import Source
from bench.data.sampler import Sampler
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.models.backbones import Backbone, backbones
from bench.models.weights import read_state
from bench.plan.graph import Ready, plan
from bench.store.record import Finished
from bench.targets.make import find_or_make_targets
from bench.train.cell import run_cell
from bench.train.keeper import Hooks
from bench.train.loop import Trainer
from methods import Accelerator, Around, Method, accelerators
from methods.build import build_method
from methods.herding import Herding
from tests.methods.small import accelerate

CPU = torch.device("cpu")
IMAGES, BATCH, SIZE, STEPS, SLOW = 32, 16, 12, 4, 7.0
GRID = """
backbone: BACKBONE
datasets: [{name: digits, train_images: 32}]
seeds: [0]
arms: [{name: it, method: byol, accelerate: AROUND}]
protocol: {epochs: 2, batch_size: 16, input_size: 12, probe: {epochs: 1}, knn: {k: 5}}
"""


def planned(root: Path, name: str, **params: float) -> tuple[Ready, Paths]:
    """Return a small cell with the accelerator, and where it runs."""
    kind, path = accelerators.get(name.partition(",")[0]), root / "tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    backbone = "vit_micro" if kind.needs_tokens else "tiny" if "tiny" in backbones else "resnet_small"
    path.write_text(GRID.replace("AROUND", json.dumps(accelerate(name) | params)).replace("BACKBONE", backbone))
    cells, paths = expand(load_grid(str(path))), Paths(root, root / "results", "tiny")
    (task,) = plan(cells, cells, paths, "grid tiny")
    assert isinstance(task, Ready), task
    return task, paths


def run(task: Ready, paths: Paths, steps: int | None = None) -> Finished:
    """Run a cell; raise Interrupted after so many steps."""
    taken: list[int] = []
    hooks = Hooks(lambda step, *_: taken.append(step), lambda *_: None, lambda: len(taken) == steps)
    return run_cell(task, paths, CPU, 0, hooks)


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # which counts attention on a CPU
        run()
    return int(counter.get_total_flops())


class Metered:
    """A source whose augmentation, which nobody pays for, is counted."""

    def __init__(self, source: Source) -> None:
        self.source, self.labels, self.flops = source, source.labels, 0

    def batches(self, *given: Any) -> Iterator[Any]:
        batches, following = self.source.batches(*given), None

        def advance() -> None:
            nonlocal following
            following = next(batches, None)

        while True:
            self.flops += counted(advance)
            if following is None:
                return
            yield following


def trained(task: Ready, paths: Paths) -> int:
    """Return all FLOPs of building the cell's method, its choice and its steps, without views and counting copies."""
    clock = Clock(CPU)
    images = open_images(task.cell, paths, CPU, 0)
    targets = find_or_make_targets(task, images.train, images.size, paths, clock, lambda: None, lambda done: None)
    values = targets.values if targets else None
    order, source, counting = Sampler(IMAGES, 1.0, BATCH, 0), Metered(images.train), 0

    def train() -> None:
        nonlocal counting
        method = build_method(task.cell, SIZE, values.shape[1] if values is not None else None, STEPS // 2)
        trainer = Trainer(method, source, order, values, task.cell.protocol, clock)
        trainer.choose()
        trainer.train(trainer.steps, lambda: None)
        counting = sum(flops for kind, flops in trainer.spent.step_flops.items() if kind != "choice")

    total = counted(train)  # each kind of step is counted once, on a copy
    return total - counting - source.flops


def assert_steps_are_charged(record: Finished, task: Ready, paths: Paths) -> None:
    assert record.ledger.flops == record.curve[-1].flops == trained(task, paths)


def assert_targets_are_charged(record: Finished, task: Ready) -> None:
    made = record.ledger.targets
    assert (made is not None) == (task.prior is not None) == accelerators.get(task.cell.accelerate.name).needs_prior
    if made and task.prior:
        network, image = task.prior.model().eval(), torch.rand(1, 3, SIZE, SIZE)
        assert made.flops == IMAGES * counted(lambda: network(image)) > 0
        assert record.ledger.flops_with_targets == record.ledger.flops + made.flops


def spends(monkeypatch: pytest.MonkeyPatch, kind: type[Method], *names: str) -> None:
    """Let each of these methods take SLOW seconds, and nothing else any."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(own: Callable[..., object]) -> Callable[..., object]:
        def slower(*given: object) -> object:
            now[0] += SLOW
            return own(*given)

        return slower

    for name in names:
        monkeypatch.setattr(kind, name, slow(getattr(kind, name)))


@pytest.mark.parametrize("name", list(accelerators))
def test_all_that_an_accelerator_computes_is_charged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, paths = planned(tmp_path, name)
    spends(monkeypatch, accelerators.get(name), "choose")
    record = run(task, paths)
    assert record.ledger.seconds == {"targets": 0, "train": SLOW, "eval": 0, "other": 0}, "a choice is training"
    assert_targets_are_charged(record, task)
    assert_steps_are_charged(record, task, paths)


@pytest.fixture
def _tiny() -> Iterator[None]:
    """Know a backbone that costs next to nothing, which the cells have."""
    with backbones.temporary(tiny=lambda: Backbone(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 8)), 8)):
        yield


def pairs(x: Tensor) -> Tensor:
    return x @ x.T


class InItsConstructor(Around):
    """It computes before anyone looks."""

    def __init__(self, method: Method, target_dim: int | None) -> None:
        super().__init__(method, target_dim)
        pairs(torch.rand(8, 4))


class ChoosesInAStep(Herding):
    """It chooses in the first step instead of `choose`, by what it takes for targets."""

    needs_prior = False

    def choose(self, count: int, targets: Tensor | None) -> None:  # type: ignore[override]
        return None

    def before_step(self, step: int, steps: int) -> None:
        super().before_step(step, steps)
        if step == 0:
            super().choose(IMAGES, torch.rand(IMAGES, 4))


class InALaterStep(Around):
    """It computes before a step that is of the kind of those before it."""

    def before_step(self, step: int, steps: int) -> None:
        super().before_step(step, steps)
        if step == 2:
            pairs(torch.rand(8, 4))


class AfterSomeSteps(Around):
    """It has its network see images after every other step, beside the loss."""

    passes = 0

    def after_step(self) -> None:
        super().after_step()
        self.passes += 1
        if self.passes % 2 == 0:
            self.backbone(torch.rand(2, 3, SIZE, SIZE))


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("lunch", [InItsConstructor, ChoosesInAStep, InALaterStep, AfterSomeSteps])
def test_a_free_lunch_is_seen(lunch: type[Accelerator], tmp_path: Path) -> None:
    with accelerators.temporary(lunch=lunch):
        task, paths = planned(tmp_path, "lunch")
        record = run(task, paths)
        with pytest.raises(AssertionError):
            assert_steps_are_charged(record, task, paths)


@pytest.mark.usefixtures("_tiny")
def test_targets_that_are_not_metered_are_seen(tmp_path: Path) -> None:
    task, paths = planned(tmp_path, "herding")
    record = run(task, paths)
    assert record.ledger.targets is not None
    cheaper = record.ledger.targets.model_copy(update={"flops": record.ledger.targets.flops // 2})
    for targets in (None, cheaper):
        ledger = record.ledger.model_copy(update={"targets": targets})
        with pytest.raises(AssertionError):
            assert_targets_are_charged(record.model_copy(update={"ledger": ledger}), task)


class Open(Around):
    """It computes before and after each step, says so of those that take more, and chooses all images after a look."""

    step = 0

    def choose(self, count: int, targets: Tensor | None) -> None:
        pairs(torch.rand(16, 4))

    def before_step(self, step: int, steps: int) -> None:
        super().before_step(step, steps)
        self.step = step
        pairs(torch.rand(8, 4))
        if self.kind == "dear":
            self.backbone(torch.rand(2, 3, SIZE, SIZE))

    def after_step(self) -> None:
        super().after_step()
        pairs(torch.rand(4, 8))

    @property
    def kind(self) -> str:
        return "dear" if self.step % 3 == 0 else "method"


@pytest.mark.usefixtures("_tiny")
def test_what_is_computed_before_and_after_each_step_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with accelerators.temporary(open=Open, plain=Around):
        spends(monkeypatch, Open, "before_step", "after_step")
        record, plain = (run(*planned(tmp_path / name, name)) for name in ("open", "plain"))
        assert_steps_are_charged(record, *planned(tmp_path / "open", "open"))
    assert record.ledger.seconds["train"] == 2 * STEPS * SLOW
    dear = 2 * 2 * 3 * SIZE * SIZE * 8  # a pass of two images, in steps 0 and 3
    choice, before, after = (2 * rows * rows * columns for rows, columns in ((16, 4), (8, 4), (4, 8)))
    assert record.ledger.flops - plain.ledger.flops == choice + STEPS * (before + after) + 2 * dear


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("name", ["herding", "sas", "subset"])
def test_a_cell_that_goes_on_keeps_its_images_and_has_paid_for_them_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spends(monkeypatch, accelerators.get(name), "choose")
    (task, cut), (same, whole) = (planned(tmp_path / where, name) for where in ("cut", "whole"))
    with pytest.raises(Interrupted):
        run(task, cut, steps=2)
    resumed, record = run(task, cut), run(same, whole)
    assert resumed.ledger.seconds["train"] == record.ledger.seconds["train"] == SLOW
    assert resumed.ledger.flops == record.ledger.flops
    states = [read_state(paths.backbone(task.id)) for paths in (cut, whole)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.usefixtures("_tiny")
def test_a_rehearsal_with_too_few_images_to_choose_from_trains_on_all(tmp_path: Path) -> None:
    task, paths = planned(tmp_path, "subset", share=0.25)
    with pytest.raises(UserError, match="8 chosen images are less than one batch of 16"):
        run(task, paths)
    assert run(task, replace(paths, rehearsal=True)).ledger.steps == STEPS
