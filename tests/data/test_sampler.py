"""Budget arithmetic: steps for each share, and which images they see."""

import pytest
import torch

from bench.core.errors import UserError
from bench.core.seeds import generator
from bench.data.sampler import Sampler, epoch_indices, evaluation_steps, images_per_epoch, steps_per_epoch, total_steps
from bench.grid.cell import Cell, Protocol


def test_the_order_of_an_epoch_is_drawn_for_it_alone() -> None:
    """Results depend on it: another stream of random numbers is another result under the same id."""
    drawn = torch.randperm(10, generator=generator(1, "order", 3))
    assert torch.equal(epoch_indices(10, 0.5, 3, seed=1), drawn[:5])


def cell(budget: float, **protocol: object) -> Cell:
    return Cell(
        arm="byol",
        dataset="cifar10",
        train_images=None,
        backbone="resnet18_cifar",
        method="byol",
        params={},
        rela=None,
        budget=budget,
        seed=0,
        protocol=Protocol.model_validate(protocol),
    )


@pytest.mark.parametrize(
    ("count", "batch", "budget", "steps"),
    [
        (50_000, 128, 1.0, 39_000),  # 390 full batches an epoch, 100 epochs
        (50_000, 128, 0.5, 19_500),
        (50_000, 128, 0.2, 7_800),
        (50_000, 128, 0.1, 3_900),
        (100_000, 128, 0.1, 7_800),
        (1_281_167, 512, 1.0, 250_200),
        (1_281_167, 512, 0.5, 125_100),
    ],
)
def test_the_papers_budgets_in_steps(count: int, batch: int, budget: float, steps: int) -> None:
    assert total_steps(cell(budget, batch_size=batch), count) == steps


def test_shares_that_floating_point_cannot_hold_are_not_rounded_down() -> None:
    for percent in range(1, 101):
        assert images_per_epoch(1000, percent / 100) == 10 * percent


def test_less_than_one_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"budget 0\.01 of 5,000 training images is less than one batch of 128"):
        total_steps(cell(0.01), 5000)


def test_an_epoch_is_a_fresh_random_share_without_repeats() -> None:
    first, second = epoch_indices(1000, 0.3, 0, seed=4), epoch_indices(1000, 0.3, 1, seed=4)
    for indices in (first, second):
        assert len(indices) == len(set(indices.tolist())) == 300
        assert 0 <= int(indices.min()) <= int(indices.max()) < 1000
    shared = len(set(first.tolist()) & set(second.tolist()))
    assert 60 < shared < 120, "two independent shares of 30 % have 90 images in common, give or take 8"
    assert not torch.equal(first, epoch_indices(1000, 0.3, 0, seed=5))
    assert torch.equal(first, epoch_indices(1000, 1.0, 0, seed=4)[:300]), "budgets of a seed share their order"


def test_order_walks_through_the_epochs_batch_by_batch() -> None:
    order = Sampler(count=103, budget=0.5, batch_size=10, seed=1)
    assert order.steps_per_epoch == steps_per_epoch(103, 0.5, 10) == 5
    seen = [order(step) for step in range(10)]
    assert torch.equal(torch.cat(seen[:5]), epoch_indices(103, 0.5, 0, 1)[:50])
    assert torch.equal(torch.cat(seen[5:]), epoch_indices(103, 0.5, 1, 1)[:50])
    assert torch.equal(order(2), seen[2]), "a step's images do not depend on the steps before"


@pytest.mark.parametrize(
    ("shares", "steps", "expected"),
    [((1.0,), 39, [39]), ((0.5, 1.0), 39, [20, 39]), ((0.1,), 39, [4, 39]), ((0.001, 0.002), 10, [1, 10])],
)
def test_evaluation_points(shares: tuple[float, ...], steps: int, expected: list[int]) -> None:
    assert evaluation_steps(cell(1.0, evaluate_at=list(shares)), steps, 5000) == expected


def test_evaluations_of_a_schedule_are_at_the_same_steps_whatever_the_budget() -> None:
    """5,000 images are 39 batches an epoch, a half of them 19 and a fifth 7; 20 epochs."""
    schedule = {"epochs": 20, "evaluations": 5}
    ends = {budget: total_steps(cell(budget, **schedule), 5000) for budget in (0.2, 0.5, 1.0)}
    steps = {budget: evaluation_steps(cell(budget, **schedule), end, 5000) for budget, end in ends.items()}
    assert steps == {0.2: [49, 98, 140], 0.5: [49, 98, 195, 380], 1.0: [49, 98, 195, 390, 780]}
    assert evaluation_steps(cell(1.0, **schedule), 777, 5000) == [49, 98, 195, 390, 777], (
        "stopped at another one's FLOP"
    )
    assert evaluation_steps(cell(1.0, epochs=1, evaluations=99), 39, 5000) == [1, 2, 3, 5, 10, 20, 39]
