"""FLOPs against a network counted by hand."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.grid.cell import Protocol
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.measure.flops import count_flops, step_flops
from bench.models.backbones import Backbone, backbones, build_backbone, resnet_small
from bench.plan.estimate import flops_per_image
from bench.train.loop import Trainer
from methods import Batch, methods
from tests.methods.small import of_its_own

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent.parent


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


def test_a_block_of_a_vision_transformer_with_its_attention() -> None:
    model, batch, tokens, dim = build_backbone("vit_micro", 32).module.eval(), 3, 64, 96
    x = torch.randn(batch, 3, 32, 32)
    projections = 2 * batch * tokens * 12 * dim * dim  # queries, keys, values, output, and the MLP's 8
    attention = 2 * 2 * batch * tokens * tokens * dim
    patches = 2 * batch * tokens * 48 * dim
    assert count_flops(lambda: model(x)) == patches + 4 * (projections + attention)
    step = 2 * patches + 3 * 4 * (projections + attention)
    assert step_flops(lambda: model(x).sum()) == step


def test_a_byol_step_is_two_student_steps_and_two_teacher_passes() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    model = methods.get("byol")(backbone, 6)
    views = [torch.randn(5, 3, 4, 4) for _ in range(2)]
    first, projector, predictor = 2 * 5 * 48 * 6, 2 * 5 * (6 * 12 + 12 * 256), 2 * 5 * (256 * 12 + 12 * 256)
    student = 2 * first + 3 * (projector + predictor)
    teacher = first + projector
    counted = step_flops(lambda: model.loss(Batch(views, torch.zeros(5))))
    assert counted == 2 * student + 2 * teacher


@pytest.mark.parametrize(("name", "said"), [("vit_micro", "63.5"), ("vit_tiny_cifar", "718")])
def test_a_vits_docstring_says_what_an_image_costs(name: str, said: str) -> None:
    model = build_backbone(name, 32).module
    flops = count_flops(lambda: model(torch.randn(1, 3, 32, 32))) / 1e6
    assert f"{flops:.3g}" == said
    assert f"; {said} MFLOP an image of 32 px." in (backbones.get(name).__doc__ or "")


def test_texts_say_what_an_image_costs_in_resnet_small() -> None:
    network = build_backbone("resnet_small", 32).module
    counted = f"{count_flops(lambda: network(torch.zeros(1, 3, 32, 32))) / 1e6:.1f}"
    texts = [resnet_small.__doc__ or "", *(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))]
    said = re.findall(r"([\d.]+) MFLOP an image", "\n".join(texts))
    assert said == [counted] * 2


@pytest.mark.parametrize("name", methods)
def test_the_ledger_is_the_sum_of_what_each_step_computes(name: str) -> None:
    """A step may differ from the first one: SwAV's queue is used once it is full."""
    torch.manual_seed(0)
    sizes = dict.fromkeys(("hidden", "prototypes", "outputs", "bottleneck"), 8)
    sizes |= {"projection": 3, "sub_batch": 4, "queue": 12, "queue_after": 0}
    size, backbone = 4, Backbone(nn.Sequential(nn.Flatten(), nn.Linear(48, 6)), 6)
    if methods.get(name).needs_tokens:
        size, backbone = 12, build_backbone("vit_micro", 12)
    model = methods.get(name)(backbone.module, backbone.dim, **of_its_own(name, sizes))
    images = torch.randint(256, (16, 3, size, size), dtype=torch.uint8)
    source = InMemoryLoader(images, torch.zeros(16, dtype=torch.int64), size, CPU)
    trainer = Trainer(model, source, Sampler(16, 1.0, 4, 0), None, Protocol(blur=False), Clock(CPU))
    pixels = [view.pixels(size) for view in model.views]
    batch = Batch([torch.randn(4, 3, each, each) for each in pixels], torch.zeros(4, dtype=torch.int64))
    flops = 0
    for step in range(1, 7):
        now = copy.deepcopy(model)
        flops += step_flops(lambda now=now: now.loss(batch))
        trainer.train(step, lambda: None)
    assert trainer.spent.flops == flops


def test_the_estimate_of_the_papers_resnet18_step() -> None:
    """A forward pass is 1.11 GFLOP, of which a BYOL step has eight (2 x 3 + 2), a ReLA step six."""
    cells = expand(load_grid("paper_table1", settings=["seeds=[0]"]))
    byol = next(cell for cell in cells if cell.arm == "byol")
    assert 8.85e9 < flops_per_image(byol, 32) < 8.95e9
