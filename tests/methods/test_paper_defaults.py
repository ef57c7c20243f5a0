"""Each default of the paper's public code against ours, a line each: Sun et al. 2024, arXiv 2405.14669, LINs-lab/ReLA.

What is not as there, on purpose, is in the last test, and docs/rela.md says it.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from torch.nn.utils.parametrize import is_parametrized
from torchvision.models import ResNet

from bench.core.paths import Paths
from bench.data import image_size, short_name
from bench.data.augment import MEAN, STD, EvalView, View
from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler, epoch_indices, total_steps
from bench.evaluate.linear_probe import LAST_EPOCHS
from bench.grid.cell import Cell, Probe, Protocol, makes_prior
from bench.grid.controls import Rela
from bench.grid.expand import expand
from bench.measure.clock import Clock
from bench.models.backbones import build_backbone
from bench.plan.load import load_grid
from bench.targets.reduce import reduce_features
from bench.train.loop import Trainer
from methods import Batch
from methods.byol import BYOL
from methods.dino import DINO
from methods.rela import FAST, SLOW, THRESHOLD, VIEW, AdaptiveSwitch, ReLA
from priors import Prior
from priors.catalogue import CATALOGUE

CPU = torch.device("cpu")
NOWHERE = Paths(Path("data"), Path("results"), "grid")
GRIDS = ("table1", "claim", "methods", "architectures", "priors", "phase", "figure_cifar10")
CELLS = [cell for name in GRIDS for cell in expand(load_grid(f"paper_{name}"))]
SMALL = [cell for cell in CELLS if cell.dataset != "imagenet1k"]
IMAGENET = [cell for cell in CELLS if cell.dataset == "imagenet1k"]


def on(dataset: str) -> Iterator[Cell]:
    return (cell for cell in expand(load_grid("paper_table1")) if cell.dataset == dataset)


def layers(module: nn.Module) -> list[object]:
    """Return the shapes of a head's Linears and what is between them."""
    kinds = (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.GELU)
    found = [each for each in module.modules() if isinstance(each, kinds)]
    return [(each.in_features, each.out_features) if isinstance(each, nn.Linear) else type(each) for each in found]


# Section 3: the algorithm


def test_targets() -> None:
    features = torch.randn(200, 7) @ torch.randn(7, 7) + 5
    targets, _ = reduce_features(features, dim=4)
    values, vectors = torch.linalg.eigh(features.double().T.cov())
    expected = (features.double() - features.double().mean(dim=0)) @ vectors.flip(1)[:, :4] / values.flip(0)[:4].sqrt()
    assert targets.shape == (200, 4), "k = min(d, p)"
    assert reduce_features(features, dim=9)[0].shape == (200, 7), "k = min(d, p)"
    assert targets.mean(dim=0).abs().max() < 1e-5
    assert (targets.var(dim=0, correction=0) - 1).abs().max() < 1e-5
    torch.testing.assert_close(targets.abs(), expected.abs().float(), rtol=0.01, atol=0.01)  # by n, not by n - 1


def test_the_rela_step() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    rela = ReLA(BYOL(backbone, 6), target_dim=4)
    views, targets = [torch.randn(5, 3, 2, 2) for _ in range(2)], torch.randn(5, 4)
    loss = rela.loss(Batch(views, torch.zeros(5, dtype=torch.int64), targets))
    cosines = torch.stack([cosine_similarity(rela.map(backbone(view)), targets) for view in views])
    assert loss.item() == pytest.approx(1 - cosines.mean().item(), abs=1e-6)
    assert (rela.map.in_features, rela.map.out_features) == (6, 4), "Linear(d -> k)"
    assert not rela.map.weight.requires_grad, "at its random initial value"
    assert Rela(prior="rand").train_map is False
    assert len(rela.views) == 2
    before = [parameter.clone() for parameter in rela.method.teacher.parameters()]
    with torch.no_grad():
        backbone[1].weight.add_(1.0)
    rela.after_step()
    assert any(not torch.equal(one, other) for one, other in zip(before, rela.method.teacher.parameters(), strict=True))


def test_the_rela_transform() -> None:
    assert VIEW.crop == (0.5, 1.0)
    assert VIEW.flip == 0.5
    assert (VIEW.brightness, VIEW.contrast, VIEW.saturation, VIEW.hue) == (0.8, 0.8, 0.8, 0.2)
    assert VIEW.jitter == 0.8
    assert VIEW.grey == 0.2
    assert (VIEW.blur, VIEW.solarise) == (0.0, 0.0)


def test_the_end_of_the_phase() -> None:
    switch = AdaptiveSwitch()
    assert (switch.fast, switch.slow) == (1, 2)
    assert (FAST, SLOW) == (0.001, 0.01)
    assert THRESHOLD == 0.995
    assert Rela(prior="rand").phase == "adaptive"
    assert Rela(prior="rand").check_every == 1
    fast, slow = 1.0, 2.0
    for step in range(3000):
        loss = 0.5 + 0.4 * math.exp(-step / 100)
        fast = 0.999 * fast + 0.001 * loss
        slow = 0.99 * slow + 0.01 * fast
        switch.update(torch.tensor(loss, dtype=torch.float64))
        assert switch.fast.item() == pytest.approx(fast, rel=1e-12)
        assert switch.slow.item() == pytest.approx(slow, rel=1e-12)
        assert bool(switch.over) == (math.exp(-max(slow - fast, 0.0)) >= 0.995)
        if switch.over:
            break
    switch.update(torch.tensor(-1e6))
    assert switch.over, "for good"


# Section 4: the protocol


def test_the_budget() -> None:
    one, *_ = on("cifar10")
    full, half = (one.model_copy(update={"budget": budget}) for budget in (1.0, 0.5))
    assert {cell.protocol.epochs for cell in CELLS} == {100, 50}, "50 are the figure's"
    assert Protocol().epochs == 100
    assert total_steps(full, 50_000) == 100 * (50_000 // 128), "the last batch is dropped"
    assert total_steps(half, 50_000) == 100 * (25_000 // 128)
    first, second = (set(epoch_indices(1000, 0.5, epoch, 0).tolist()) for epoch in (0, 1))
    assert len(first) == len(second) == 500
    assert first != second, "drawn anew every epoch"


def test_the_optimiser() -> None:
    images = InMemoryLoader(
        torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8), torch.zeros(8, dtype=torch.int64), 8, CPU
    )
    method = BYOL(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), 4)
    trainer = Trainer(method, images, Sampler(8, 1.0, 4, 0), None, Protocol(batch_size=4), Clock(CPU))
    (group,) = trainer.optimiser.param_groups
    assert type(trainer.optimiser) is torch.optim.AdamW
    assert group["lr"] == 1e-3
    assert group["weight_decay"] == 0.01
    trainer.train(4, lambda: None)
    assert group["lr"] == 1e-3, "no schedule, no warm-up"
    assert len(group["params"]) == len([p for p in method.parameters() if p.requires_grad]), "all with weight decay"
    assert {cell.protocol.lr for cell in CELLS} == {1e-3}
    assert {cell.protocol.weight_decay for cell in CELLS} == {0.01}
    assert {cell.protocol.batch_size for cell in SMALL} == {Protocol().batch_size} == {128}
    assert {cell.protocol.batch_size for cell in IMAGENET} == {512}
    assert {cell.protocol.precision for cell in CELLS} == {"fp16"}


def test_the_backbones() -> None:
    small, large = (build_backbone(name, 32) for name in ("resnet18_cifar", "resnet50"))
    stems = [
        (each.module.conv1.kernel_size, each.module.conv1.stride, type(each.module.maxpool)) for each in (small, large)
    ]
    assert stems[0] == ((3, 3), (1, 1), nn.Identity)
    assert stems[1] == ((7, 7), (2, 2), nn.MaxPool2d)
    assert type(small.module) is type(large.module) is ResNet
    assert (small.dim, large.dim) == (512, 2048)
    for name in ("cifar10", "cifar100", "tiny_imagenet"):
        assert {cell.backbone for cell in on(name)} == {"resnet18_cifar"}
    assert {cell.backbone for cell in IMAGENET} == {"resnet50"}


def test_the_input_sizes() -> None:
    assert {image_size(cell, NOWHERE) for cell in on("cifar10")} == {32}
    assert {image_size(cell, NOWHERE) for cell in on("cifar100")} == {32}
    assert {image_size(cell, NOWHERE) for cell in on("tiny_imagenet")} == {64}
    assert {image_size(cell, NOWHERE) for cell in IMAGENET} == {224}
    assert {image_size(cell, NOWHERE) for cell in expand(load_grid("paper_architectures"))} == {224}


def test_byol() -> None:
    byol = BYOL(nn.Identity(), 512)
    assert layers(byol.projector) == [(512, 1024), nn.BatchNorm1d, nn.ReLU, (1024, 256)]
    assert layers(byol.predictor) == [(256, 1024), nn.BatchNorm1d, nn.ReLU, (1024, 256)]
    assert byol.teacher.momentum == 0.99
    views = [torch.randn(6, 512) for _ in range(2)]
    predicted = [byol.predictor(byol.projector(view)) for view in views]
    taught = [byol.teacher(view) for view in views]
    cosines = [cosine_similarity(predicted[i], taught[1 - i]).mean().item() for i in (0, 1)]
    assert byol.loss(Batch(views, torch.zeros(6))).item() == pytest.approx(-sum(cosines) / 2, abs=1e-5)
    first, second = byol.views
    for view in byol.views:
        assert view.crop == (0.08, 1.0)
        assert view.flip == 0.5
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.2, 0.1)
        assert view.jitter == 0.8
        assert view.grey == 0.2
    assert (first.blur, second.blur) == (1.0, 0.1)
    assert (first.solarise, second.solarise) == (0.0, 0.2)
    assert {cell.protocol.blur for cell in CELLS if cell.dataset.startswith("cifar")} == {False}
    assert {cell.protocol.blur for cell in CELLS if not cell.dataset.startswith("cifar")} == {Protocol().blur} == {True}


def test_dino() -> None:
    dino = DINO(nn.Identity(), 512)
    assert layers(dino.student) == [(512, 2048), nn.BatchNorm1d, nn.GELU, (2048, 256), (256, 2048)]
    last = [each for each in dino.student.modules() if isinstance(each, nn.Linear)][-1]
    assert is_parametrized(last, "weight"), "weight-normalised"
    assert dino.teacher.momentum == 0.99
    assert len(dino.views) == 2, "global ones, no local ones"


def test_the_normalisation() -> None:
    assert MEAN == (0.485, 0.456, 0.406)
    assert STD == (0.229, 0.224, 0.225)
    white = InMemoryLoader(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), 4, CPU)
    (plain,) = white.eval_batches(EvalView(4))
    _, (view,) = next(white.batches((View(jitter=0.0),), Sampler(1, 1.0, 1, 0), range(1)))
    expected = ((1 - torch.tensor(MEAN)) / torch.tensor(STD))[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(view, expected)
    assert (Prior.mean, Prior.std) == (MEAN, STD)


def test_the_linear_evaluation() -> None:
    assert Probe().recipe == "adam"
    assert Probe().lr == 3e-4
    assert Probe().epochs == 100
    assert Probe().batch_size == 128
    assert {cell.protocol.probe for cell in SMALL} == {Probe()}
    assert {cell.protocol.probe for cell in IMAGENET} == {Probe(batch_size=1024)}
    assert LAST_EPOCHS == 3, "mean and deviation over the last epochs"


def test_the_images_of_the_linear_evaluation() -> None:
    assert {cell.protocol.eval_resize for cell in IMAGENET} == {256}
    assert {cell.protocol.eval_resize for cell in SMALL} == {Protocol().eval_resize} == {None}


def test_the_priors() -> None:
    trained = {short_name(cell.dataset): image_size(cell, NOWHERE) for cell in CELLS if makes_prior(cell)}
    sizes = {name: (CATALOGUE[name].input_size, CATALOGUE[name].model) for name in CATALOGUE}
    assert trained["CF100"] == 32
    assert trained["TIN"] == 64
    assert trained["IN1K"] == 224
    assert {image_size(c, NOWHERE) for c in on("cifar10") if makes_prior(c)} == {32}
    assert {image_size(c, NOWHERE) for c in expand(load_grid("paper_claim")) if c.dataset == "cifar10"} == {32}
    assert sizes["IN21K-MobileNetV3"] == (224, "timm:mobilenetv3_large_100.miil_in21k")
    assert sizes["IN21K-RN50"][0] == 224
    assert sizes["CLIP-RN50"] == (224, "timm:resnet50_clip.openai")
    assert sizes["CLIP-RN101"] == (224, "timm:resnet101_clip.openai")
    assert sizes["CLIP-RN50x4"] == (288, "timm:resnet50x4_clip.openai")
    assert sizes["CLIP-B32"] == (224, "timm:vit_base_patch32_clip_224.openai")
    assert sizes["CLIP-B16"] == (224, "timm:vit_base_patch16_clip_224.openai")
    assert sizes["CLIP-L14"] == (224, "timm:vit_large_patch14_clip_224.openai")
    assert sizes["YOLOv9"][0] == 640


def test_what_is_not_as_in_the_public_code() -> None:
    """A public model sees images normalised as it was trained; there, all are normalised as ImageNet's."""
    assert CATALOGUE["CLIP-RN50"].mean == (0.48145466, 0.4578275, 0.40821073)
    assert CATALOGUE["IN21K-MobileNetV3"].mean == (0.0, 0.0, 0.0)
