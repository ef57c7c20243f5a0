"""The recipe of an arm: optimisers, schedules of the rate and of a momentum network, and how they are resumed."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bench.core.seeds import generator
from bench.data.loader import InMemoryLoader
from bench.grid.cell import Recipe
from bench.train.loop import Trainer
from bench.train.recipe import optimiser_of, rate
from methods import Momentum
from tests.train.small import BATCH, cell, noise, trainer_of

COUNT, EPOCHS = 32, 5
STEPS = EPOCHS * COUNT // BATCH
COSINE = {"schedule": "cosine", "warmup": 0.2, "teacher": "cosine", "lr": 0.05}


@pytest.fixture(scope="module")
def source() -> InMemoryLoader:
    return noise(COUNT)


def trainer(source: InMemoryLoader, phase: float | None = None, budget: float = 1.0, **protocol: object) -> Trainer:
    return trainer_of(cell(phase=phase, budget=budget, epochs=EPOCHS, **protocol), source)


def of_torch(lr: float, rising: int, steps: int, cosine: bool) -> list[float]:
    """Return the rate of each step by torch's own schedulers."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    parts: list[torch.optim.lr_scheduler.LRScheduler] = []
    if rising:
        parts.append(torch.optim.lr_scheduler.LinearLR(optimiser, 1 / rising, 1.0, max(rising - 1, 1)))
    after = torch.optim.lr_scheduler.CosineAnnealingLR if cosine else torch.optim.lr_scheduler.ConstantLR
    parts.append(after(optimiser, steps - rising - 1) if cosine else after(optimiser, 1.0, 1))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimiser, parts, [rising] if rising else [])
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("steps", [20, 780])
def test_the_rate_of_each_step_is_that_of_torchs_schedulers(steps: int, schedule: str, warmup: float) -> None:
    recipe = Recipe.model_validate({"lr": 0.3, "schedule": schedule, "warmup": warmup})
    ours = [rate(recipe, step, steps) for step in range(steps)]
    expected = of_torch(0.3, round(warmup * steps), steps, schedule == "cosine")
    assert ours == pytest.approx(expected, abs=1e-12, rel=0)


def watched(trainer: Trainer, until: int) -> tuple[list[float], list[float]]:
    """Train, and return the rates that the steps had and the momentum with which the network followed."""
    (network,) = [each for each in trainer.method.modules() if isinstance(each, Momentum)]
    rates, momenta = [], []

    def look() -> None:
        (found,) = {group["lr"] for group in trainer.optimiser.param_groups}
        rates.append(found)
        momenta.append(network.momentum)

    trainer.train(until, look)
    return rates, momenta


@pytest.mark.parametrize("phase", [None, 0.4], ids=["plain", "rela"])
def test_a_cell_has_one_schedule_across_kill_and_switch(source: InMemoryLoader, phase: float | None) -> None:
    """The rate ends at 0 with the cell's own budget; the momentum rises as in BYOL's section 3.2."""
    whole, cut, resumed = (trainer(source, phase, **COSINE) for _ in range(3))
    rates, momenta = watched(whole, STEPS)
    assert rates == pytest.approx(of_torch(0.05, STEPS // 5, STEPS, cosine=True), abs=1e-12, rel=0)
    byol = [1 - (1 - 0.99) * (math.cos(math.pi * k / (STEPS - 1)) + 1) / 2 for k in range(STEPS)]
    assert momenta == pytest.approx(byol, abs=1e-12, rel=0)
    first = watched(cut, 7)
    resumed.restore(cut.state())
    second = watched(resumed, STEPS)
    assert (first[0] + second[0], first[1] + second[1]) == (rates, momenta)
    for name, value in whole.method.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, resumed.method.state_dict()[name]), name
    if phase is not None:
        assert whole.method.switch_step == 8


def test_a_smaller_budget_ends_its_own_schedule(source: InMemoryLoader) -> None:
    rates, _ = watched(trainer(source, budget=0.5, **COSINE), STEPS // 2)
    assert rates == pytest.approx(of_torch(0.05, STEPS // 10, STEPS // 2, cosine=True), abs=1e-12, rel=0)


def test_the_default_recipe_never_moves(source: InMemoryLoader) -> None:
    rates, momenta = watched(trainer(source), STEPS)
    assert (set(rates), set(momenta)) == ({1e-3}, {0.99})


def by_hand(recipe: Recipe, start: Tensor, gradients: list[Tensor], rates: list[float]) -> Tensor:
    """Return a weight after its gradients, in float64: SGD, or LARS (You et al. 2017, equation 6) at trust 0.001."""
    weight, velocity = start.double(), torch.zeros_like(start, dtype=torch.float64)
    decay = recipe.weight_decay if start.ndim > 1 or recipe.decay_norm_and_bias else 0.0
    for gradient, lr in zip(gradients, rates, strict=True):
        step = gradient.double() + decay * weight
        if recipe.optimiser == "lars" and decay:
            step *= 0.001 * weight.norm() / (gradient.double().norm() + decay * weight.norm())
        velocity = recipe.momentum * velocity + step
        weight = weight - lr * velocity
    return weight


@pytest.mark.parametrize("everything", [True, False], ids=["all decay", "no norm and bias"])
@pytest.mark.parametrize(("optimiser", "momentum"), [("sgd", 0.9), ("sgd", 0.0), ("lars", 0.8)])
def test_sgd_and_lars_follow_their_law(optimiser: str, momentum: float, everything: bool) -> None:
    recipe = Recipe.model_validate(
        {
            "optimiser": optimiser,
            "lr": 0.5,
            "momentum": momentum,
            "weight_decay": 0.1,
            "decay_norm_and_bias": everything,
            "schedule": "cosine",
        }
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    draw = generator(0, "weights")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    before = copy.deepcopy(net)
    used = optimiser_of(net.parameters(), recipe)
    rates = [rate(recipe, step, 5) for step in range(5)]
    gradients = [[torch.randn(each.shape, generator=draw) for each in net.parameters()] for _ in rates]
    for lr, these in zip(rates, gradients, strict=True):
        for parameter, gradient in zip(net.parameters(), these, strict=True):
            parameter.grad = gradient
        for group in used.param_groups:
            group["lr"] = lr
        used.step()
    for index, (now, start) in enumerate(zip(net.parameters(), before.parameters(), strict=True)):
        expected = by_hand(recipe, start.detach(), [these[index] for these in gradients], rates)
        torch.testing.assert_close(now.detach().double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("everything", [True, False])
def test_adamw_decays_norms_and_biases_where_the_recipe_says_so(everything: bool) -> None:
    """Without gradient to speak of, what is left of a weight is 1 - lr * decay at each step."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    nn.init.ones_(net[0].bias)  # type: ignore[arg-type]
    before = [parameter.detach().clone() for parameter in net.parameters()]
    used = optimiser_of(net.parameters(), Recipe(lr=0.1, weight_decay=0.5, decay_norm_and_bias=everything))
    for _ in range(2):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        used.step()
    for start, now in zip(before, net.parameters(), strict=True):
        left = 0.95**2 if everything or start.ndim > 1 else 1.0
        torch.testing.assert_close(now.detach(), left * start)


@pytest.mark.parametrize("optimiser", ["sgd", "lars"])
def test_a_cell_trained_by_it_resumes_to_the_same_bits(source: InMemoryLoader, optimiser: str) -> None:
    whole, cut, resumed = (trainer(source, optimiser=optimiser, **COSINE) for _ in range(3))
    start = torch.cat([each.detach().flatten().clone() for each in whole.trained])
    whole.train(9, lambda: None)
    cut.train(4, lambda: None)
    resumed.restore(cut.state())
    resumed.train(9, lambda: None)
    one, two = (torch.cat([each.detach().flatten() for each in which.trained]) for which in (whole, resumed))
    assert torch.equal(one, two)
    assert 0 < (one - start).norm() < 1e3
    assert whole.skipped_steps() == 0
