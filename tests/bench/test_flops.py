"""FLOPs against a network counted by hand."""

import torch
from torch import nn

from bench.cells import expand
from bench.estimate import flops_per_image
from bench.flops import count_flops, step_flops
from bench.grid import load_grid
from methods import Batch, methods


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))


def by_hand(batch: int) -> tuple[int, int]:
    """Return the FLOPs of the convolution (6x6 pixels) and of the linear layer, forward, 2 per multiply-add."""
    return 2 * batch * 8 * 36 * 3 * 9, 2 * batch * 288 * 5


def test_a_forward_pass() -> None:
    model, x = network(), torch.randn(4, 3, 6, 6)
    assert count_flops(lambda: model(x)) == sum(by_hand(4))


def test_a_training_step_needs_no_gradient_of_its_input() -> None:
    model, x = network(), torch.randn(4, 3, 6, 6)
    convolution, linear = by_hand(4)
    # Backward: weights of both layers, and the linear layer's input.
    assert step_flops(lambda: model(x).sum()) == 2 * convolution + 3 * linear


def test_a_byol_step_is_two_student_steps_and_two_teacher_passes() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    model = methods.get("byol")(backbone, 6)
    views = [torch.randn(5, 3, 4, 4) for _ in range(2)]
    first, projector, predictor = 2 * 5 * 48 * 6, 2 * 5 * (6 * 12 + 12 * 256), 2 * 5 * (256 * 12 + 12 * 256)
    student = 2 * first + 3 * (projector + predictor)
    teacher = first + projector
    counted = step_flops(lambda: model.loss(Batch(views, torch.zeros(5))))
    assert counted == 2 * student + 2 * teacher


def test_the_estimate_of_the_papers_resnet18_step() -> None:
    """A forward pass is 1.11 GFLOP, of which a BYOL step has eight (2 x 3 + 2), a ReLA step six."""
    cells = expand(load_grid("paper_table1", settings=["seeds=[0]"]))
    byol = next(cell for cell in cells if cell.arm == "byol")
    assert 8.85e9 < flops_per_image(byol, 32) < 8.95e9
