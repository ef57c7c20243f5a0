"""ReLA inside an accelerator, and a rate that falls after ReLA's phase: through the real trainer and a real cell."""

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core.errors import UserError
from bench.data.loader import InMemoryLoader
from bench.grid.cell import Cell, cell_id
from bench.grid.controls import Rela
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.plan.graph import Ready
from bench.report.labels import arm_labels
from bench.train.loop import Trainer
from methods import Around, Batch, Method, accelerators
from methods.byol import BYOL
from methods.rela import ReLA
from tests.train.colours import COUNT as COLOURS
from tests.train.colours import registered, run, spread, tasks_of
from tests.train.small import BATCH, CPU, cell, noise, trainer_of
from tests.train.test_determinism import assert_same

COUNT, EPOCHS, LR = 32, 3, 0.05
STEPS = EPOCHS * COUNT // BATCH
BOTH = "{method: byol, rela: {prior: red, phase: 0.5}, accelerate: {name: gentle, share: 0.25}}"


class Gentle(Around):
    """The rate of the method's first steps is halved."""

    def __init__(self, method: Method, target_dim: int | None, share: float = 0.5) -> None:
        super().__init__(method, target_dim)
        self.share, self.target_dim, self.early = share, target_dim, False
        self.seen: list[Tensor | None] = []

    def before_step(self, step: int, steps: int) -> None:
        super().before_step(step, steps)
        self.early = step < self.share * steps

    def loss(self, batch: Batch) -> Tensor:
        self.seen.append(batch.targets)
        return super().loss(batch)

    @property
    def rate(self) -> float:
        return self.method.rate / 2 if self.early else self.method.rate


@pytest.fixture(scope="module")
def source() -> InMemoryLoader:
    return noise(COUNT)


def falling(phase: float | Literal["adaptive"], **protocol: object) -> Cell:
    rela = Rela(prior="rand", phase=phase, then="cosine")
    return cell(epochs=EPOCHS, lr=LR, **protocol).model_copy(update={"rela": rela})


def rates(trainer: Trainer, until: int) -> list[float]:
    """Train, and return the rates that the optimiser had in each step."""
    found: list[float] = []
    trainer.train(until, lambda: found.append(float(trainer.optimiser.param_groups[0]["lr"])))
    return found


def by_hand(switch: int) -> list[float]:
    """Return what each step's rate is multiplied by: 1, and after the switch half a period of a cosine."""
    left = STEPS - switch
    return [1.0] * switch + [math.cos(math.pi * k / left / 2) ** 2 for k in range(left)]


@pytest.mark.parametrize(("phase", "switch"), [(0.0, 0), (0.4, 4), ("adaptive", 1)])
def test_after_relas_phase_a_cosine_takes_the_rate_to_0(
    phase: float | Literal["adaptive"], switch: int, source: InMemoryLoader
) -> None:
    """And a run that is resumed while it falls has the same rates and the same bits."""
    whole, cut, resumed = (trainer_of(falling(phase), source) for _ in range(3))
    for each in (whole, cut):
        assert isinstance(each.method, ReLA)
        each.method.switch.over.fill_(True)  # which ends an adaptive phase after its first step
    expected = [LR * factor for factor in by_hand(switch)]
    found = rates(whole, STEPS)
    assert found == pytest.approx(expected, abs=1e-12, rel=0)
    assert whole.method.switch_step == switch
    first = rates(cut, 7)
    resumed.restore(copy.deepcopy(cut.state()))
    assert first + rates(resumed, STEPS) == found
    assert_same(whole, resumed)


def around(accelerator: type[Around], of: Cell, source: InMemoryLoader, **params: float) -> Trainer:
    """Return what trains a cell's method with an accelerator around it."""
    inner = trainer_of(of, source)
    method = accelerator(inner.method, None, **params)
    return Trainer(method, source, inner.order, inner.targets, of.protocol, Clock(CPU))


def test_it_is_a_factor_of_the_recipes_own_schedule(source: InMemoryLoader) -> None:
    """Also inside an accelerator that leaves the rate alone."""
    recipe = [LR * math.cos(math.pi * step / (STEPS - 1) / 2) ** 2 for step in range(STEPS)]
    expected = [rate * factor for rate, factor in zip(recipe, by_hand(4), strict=True)]
    found = rates(around(Around, falling(0.4, schedule="cosine"), source), STEPS)
    assert found == pytest.approx(expected, abs=1e-12, rel=0)


def test_an_accelerators_rate_is_around_relas_and_the_method_in_both_prepares_each_step(
    source: InMemoryLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[tuple[int, int]] = []
    monkeypatch.setattr(BYOL, "before_step", lambda self, *given: prepared.append(given))
    expected = [LR * factor / (2 if step < 8 else 1) for step, factor in enumerate(by_hand(4))]
    assert rates(around(Gentle, falling(0.4), source, share=0.6), STEPS) == pytest.approx(expected, abs=1e-12, rel=0)
    assert list(dict.fromkeys(prepared)) == [(step, STEPS) for step in range(STEPS)]  # some of a copy, to be counted


@pytest.fixture
def root(tmp_path: Path, temporary: Any) -> Iterator[Path]:
    temporary(accelerators, gentle=Gentle)
    with registered():
        yield tmp_path


def ready(arms: str, root: Path) -> Ready:
    (task,), _ = tasks_of(root, arms)
    assert isinstance(task, Ready)
    return task


def test_a_cell_with_rela_inside_an_accelerator_trains_on_relas_targets_and_then_on_the_method(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Gentle] = []
    build = accelerators.build
    monkeypatch.setattr(accelerators, "build", lambda *given: made.append(found := build(*given)) or found)
    task, alone = ready(BOTH, root), ready("{method: byol, rela: {prior: red, phase: 0.5}}", root)
    (_, paths) = tasks_of(root, BOTH)
    record = run(task, paths)
    (gentle,) = made
    targets = [each for each in gentle.seen if each is not None]
    # An epoch of six steps in each of which an image is seen once, and the rest without targets.
    assert [each is None for each in gentle.seen] == [False] * 6 + [True] * 12
    np.testing.assert_allclose(np.sort(torch.cat(targets)[:, 0].numpy()), spread(range(COLOURS)), atol=1e-5)
    assert gentle.target_dim is None, "the targets are ReLA's"
    assert record.switch_step == 6
    assert record.ledger.targets
    assert record.ledger.targets.images == COLOURS
    assert record.inputs.prior == alone.inputs.prior
    assert (record.inputs.accelerator_version, record.inputs.accelerator_params) == (1, {"share": 0.25})
    assert set(record.curve[-1].mean_losses) == {"rela", "method"}


def test_it_has_a_name_a_label_and_an_identity_of_its_own(root: Path) -> None:
    task = ready(BOTH, root)
    assert task.cell.arm == "gentle(rela(byol,red),share=0.25)"
    (arm,) = load_grid(str(root / "colours.yaml")).arms
    assert arm_labels([arm])[task.cell.arm] == "byol + ReLA (red, phase 0.5) + gentle (share 0.25)"
    assert arm_labels([arm], short=True)[task.cell.arm] == "ReLA (red, phase 0.5) + gentle (share 0.25)"
    assert cell_id(task.cell, task.inputs) == task.id
    others = [
        BOTH.replace("share: 0.25", "share: 0.5"),
        BOTH.replace("phase: 0.5", "phase: 0.6"),
        BOTH.replace("phase: 0.5", "phase: 0.5, then: cosine"),
        BOTH.replace("rela: {prior: red, phase: 0.5}, ", ""),
        BOTH.replace(", accelerate: {name: gentle, share: 0.25}", ""),
    ]
    assert len({task.id, *(ready(other, root).id for other in others)}) == 6
    assert ready(BOTH.replace(", share: 0.25", ""), root).id == ready(others[0], root).id, "the default, named or not"


def test_an_arm_in_which_both_name_a_prior_is_refused_in_one_sentence(root: Path) -> None:
    why = "arms[0]: rela and accelerate both need the targets of a prior; leave out one of them"
    with pytest.raises(UserError, match=rf"^[^\n]*{re.escape(why)}$"):
        tasks_of(root, BOTH.replace("name: gentle", "name: gentle, prior: red"))
