"""The ReLA wrapper: its loss, its map, and when its phase ends."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.data.sampler import total_steps
from bench.grid.expand import expand
from bench.grid.load import load_grid
from methods import Batch, methods
from methods.build import build_method
from methods.rela import VIEW, AdaptiveSwitch, ReLA

ROOT = Path(__file__).parent.parent.parent


def wrapped(**options: object) -> ReLA:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 12))
    return ReLA(methods.get("byol")(backbone, 12), 5, **options)  # type: ignore[arg-type]


def batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    views = [torch.randn(7, 3, 4, 4, generator=draw) for _ in range(2)]
    return Batch(views, torch.zeros(7, dtype=torch.int64), torch.randn(7, 5, generator=draw))


def switch_by_hand(losses: list[float]) -> int | None:
    """Return after how many losses the phase ends: the rule as the paper's code has it, in plain Python."""
    fast, slow = 1.0, 2.0
    for step, loss in enumerate(losses, start=1):
        fast = 0.999 * fast + 0.001 * loss
        slow = 0.99 * slow + 0.01 * fast
        if math.exp(-max(slow - fast, 0.0)) >= 0.995:
            return step
    return None


def test_loss_is_one_minus_the_cosine_to_the_targets_over_both_views() -> None:
    rela, data = wrapped(), batch()
    assert data.targets is not None
    terms: list[Tensor] = []
    for view in data.views:
        guess = rela.map(rela.backbone(view))
        norms = guess.norm(dim=1) * data.targets.norm(dim=1)
        terms.append((1 - (guess * data.targets).sum(dim=1) / norms).mean())
    torch.testing.assert_close(rela.loss(data), (terms[0] + terms[1]) / 2)


@pytest.mark.parametrize("train_map", [False, True])
def test_the_map_is_trained_only_on_demand(train_map: bool) -> None:
    rela = wrapped(train_map=train_map)
    rela.loss(batch()).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in rela.backbone.parameters())
    assert all((parameter.grad is not None) == train_map for parameter in rela.map.parameters())
    assert all(parameter.requires_grad == train_map for parameter in rela.map.parameters())


@pytest.mark.parametrize("level", [0.9, 0.5, 0.05])
def test_the_adaptive_switch_follows_the_rule(level: float) -> None:
    draw = torch.Generator().manual_seed(2)
    noise = torch.rand(6000, generator=draw, dtype=torch.float64)
    losses = (level + (1 - level) * torch.exp(-torch.arange(6000) / 500) + 0.02 * noise).tolist()
    expected = switch_by_hand(losses)
    assert expected is not None
    assert expected > 300
    switch = AdaptiveSwitch()
    found = None
    for step, loss in enumerate(losses[: expected + 50], start=1):
        switch.update(torch.tensor(loss, dtype=torch.float64))
        if found is None and bool(switch.over):
            found = step
    assert found == expected
    assert bool(switch.over), "the phase ends for good"


def test_a_run_of_a_thousand_steps_at_a_falling_loss_never_switches() -> None:
    losses = [1 - 0.0003 * step for step in range(1000)]
    assert switch_by_hand(losses) is None
    switch = AdaptiveSwitch()
    for loss in losses:
        switch.update(torch.tensor(loss))
    assert not bool(switch.over)


@pytest.mark.parametrize("text", [(ROOT / "docs" / "rela.md").read_text("utf-8"), AdaptiveSwitch.__doc__])
def test_texts_say_after_how_many_steps_the_adaptive_phase_ends(text: str) -> None:
    listed = re.search(
        r"at a constant loss of ([\d.,\sand]+?) (?:the adaptive\sphase ends )?after ([\d,\sand]+)\ssteps", text, re.I
    )
    assert listed
    losses, steps = (re.findall(r"\d[\d.,]*\d|\d", part) for part in listed.groups())
    for loss, step in zip(losses, steps, strict=True):
        switch, taken = AdaptiveSwitch(), 0
        while not bool(switch.over):
            switch.update(torch.tensor(float(loss), dtype=torch.float64))
            taken += 1
        assert f"{taken:,}" == step, loss


@pytest.mark.parametrize(
    ("phase", "rehearsal", "steps"),
    [("adaptive", False, None), ("adaptive", True, 50), (0.25, False, 25), (0.25, True, 25)],
)
def test_an_adaptive_phase_ends_halfway_in_a_rehearsal(phase: Any, rehearsal: bool, steps: int | None) -> None:
    (cell, *_) = (cell for cell in expand(load_grid("cifar_small")) if cell.rela)
    rela = cell.rela.model_copy(update={"phase": phase}) if cell.rela else None
    protocol = cell.protocol.model_copy(update={"epochs": 20})
    built = build_method(cell.model_copy(update={"rela": rela, "protocol": protocol}), 32, 5, 5, rehearsal)
    assert isinstance(built, ReLA)
    assert built.phase_steps == steps


def test_the_docs_say_how_long_cifar_small_is() -> None:
    steps = [total_steps(cell, 5000) for cell in expand(load_grid("cifar_small")) if cell.rela]
    text = " ".join((ROOT / "docs" / "rela.md").read_text("utf-8").split())
    assert f"a cell of `cifar_small` with ReLA has {max(steps)} steps at most" in text
    assert switch_by_hand([1.0] * max(steps)) is None, "an adaptive phase does not end"


@pytest.mark.parametrize(("phase_steps", "expected"), [(0, 0), (1, 1), (3, 3)])
def test_a_constant_phase_lasts_its_steps_and_then_the_method_runs(phase_steps: int, expected: int) -> None:
    rela, data = wrapped(phase_steps=phase_steps), batch()
    kinds = []
    for _ in range(5):
        kinds.append(rela.in_phase)
        own = rela.method.loss(data)
        assert torch.equal(rela.loss(data), own) == (not rela.in_phase)
        assert rela.views == ((VIEW, VIEW) if rela.in_phase else rela.method.views)
        rela.after_step()
    assert kinds == [True] * expected + [False] * (5 - expected)
    assert rela.switch_step == expected


def test_the_switch_is_looked_at_every_so_many_steps() -> None:
    rela, data = wrapped(check_every=4), batch()
    rela.switch.over.fill_(True)
    for step in range(1, 5):
        rela.loss(data)
        rela.after_step()
        assert rela.in_phase == (step < 4)
    assert rela.switch_step == 4


def test_the_momentum_network_moves_during_the_phase() -> None:
    rela = wrapped()
    with torch.no_grad():
        for parameter in rela.backbone.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in rela.method.teacher.parameters()]
    rela.loss(batch())
    rela.after_step()
    assert any(not torch.equal(a, b) for a, b in zip(before, rela.method.teacher.parameters(), strict=True))


def test_the_state_holds_the_switch() -> None:
    rela, data = wrapped(phase_steps=2), batch()
    for _ in range(2):
        rela.loss(data)
        rela.after_step()
    other = wrapped(phase_steps=2)
    other.load_state_dict(rela.state_dict())
    assert (other.steps, other.switch_step, other.in_phase) == (2, 2, False)
    assert torch.equal(other.switch.slow, rela.switch.slow)
