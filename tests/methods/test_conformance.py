"""What every method must do, whoever wrote it. `pytest tests/methods --plugin FILE` checks a method of yours."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.core.seeds import generator
from bench.data import load_dataset
from bench.data.augment import augment
from bench.models.backbones import build_backbone
from methods import Batch, Method, methods
from methods.rela import ReLA
from tests.methods.small import backbone_for

SIZE, COUNT, STEPS = 12, 16, 20
SMALL: dict[str, dict[str, Any]] = {  # of the paper's sizes, those that would only cost time here
    "barlow_twins": {"projection": 64},
    "dino": {"hidden": 64},
    "dino_multicrop": {"hidden": 64},
    "dinov2": {"hidden": 32, "outputs": 32},
    "fastsiam": {"projection": 64, "bottleneck": 16},
    "frossl": {"hidden": 64, "projection": 32},
    "ibot": {"hidden": 32, "outputs": 32},
    "lejepa": {"hidden": 64, "projection": 16, "directions": 32},
    "mmcr": {"hidden": 64, "projection": 32, "pairs": 1},
    "moco": {"queue": COUNT},
    "mocov3": {"hidden": 64},
    "msn": {"hidden": 64, "projection": 16, "prototypes": 32},
    "nnclr": {"hidden": 64, "prediction": 64, "queue": COUNT},
    "ressl": {"hidden": 64, "projection": 32, "queue": COUNT},
    "simsiam": {"projection": 64, "bottleneck": 16},
    "smog": {"hidden": 64, "groups": 20},
    "swav": {"prototypes": 20, "queue": COUNT, "queue_after": 0},
    "swav_multicrop": {"prototypes": 20, "queue": COUNT, "queue_after": 0},
    "tico": {"hidden": 64, "projection": 32, "beta": 0.5},  # its loss rises until the covariance, from 0, is whole
    "vicreg": {"projection": 64},
    "wmse": {"hidden": 64, "projection": 4, "sub_batch": 8},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    root = tmp_path_factory.mktemp("data")
    return torch.from_numpy(load_dataset("digits", Paths(root, root, "test")).train.images[:COUNT])


def build(name: str, with_rela: bool) -> Method:
    torch.manual_seed(0)
    backbone = build_backbone(backbone_for(name), SIZE)
    method = methods.get(name)(backbone.module, backbone.dim, **SMALL.get(name, {}))
    return ReLA(method, 8, phase_steps=STEPS) if with_rela else method


def batch(method: Method, images: Tensor, step: int) -> Batch:
    draw = generator(0, "conformance", step)
    views = augment([images] * len(method.views), method.views, SIZE, draw)
    targets = torch.randn(len(images), 8, generator=generator(0, "targets"))
    return Batch(views, torch.arange(len(images)) % 10, targets)


def train(method: Method, images: Tensor, steps: int, same_batch: bool = False) -> list[float]:
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(steps):
        method.before_step(step, steps)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * method.rate
        torch.manual_seed(step)
        loss = method.loss(batch(method, images, 0 if same_batch else step))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        method.after_step()
        losses.append(loss.item())
    return losses


@pytest.fixture(params=list(methods))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_loss_is_a_finite_number_and_falls(name: str, images: Tensor) -> None:
    falls(build(name, with_rela=False), images)


@pytest.mark.parametrize("around", ["byol", "mae"])
def test_so_does_relas_whatever_the_method_on_a_resnet_and_on_a_vision_transformer(around: str, images: Tensor) -> None:
    falls(build(around, with_rela=True), images)


def falls(method: Method, images: Tensor) -> None:
    assert method.loss(batch(method, images, 0)).shape == ()
    losses = train(method, images, STEPS, same_batch=True)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_every_parameter_is_trained_or_declared_frozen(name: str, images: Tensor) -> None:
    method = build(name, with_rela=False)
    before = {key: value.clone() for key, value in method.named_parameters()}
    train(method, images, 2)
    still = [key for key, value in method.named_parameters() if value.requires_grad and torch.equal(value, before[key])]
    assert still == [], "trained parameters that no step changes: freeze them with requires_grad_(False)"


@pytest.mark.parametrize("with_rela", [False, True], ids=["plain", "rela"])
def test_the_same_seed_gives_the_same_result(name: str, with_rela: bool, images: Tensor) -> None:
    first, second = build(name, with_rela), build(name, with_rela)
    assert train(first, images, 3) == train(second, images, 3)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("with_rela", [False, True], ids=["plain", "rela"])
def test_the_state_is_all_that_a_resumed_run_needs(name: str, with_rela: bool, images: Tensor) -> None:
    method = build(name, with_rela)
    train(method, images, 2)
    other = build(name, with_rela)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert train(other, images, 3) == train(method, images, 3)


def test_it_takes_over_when_the_rela_phase_ends(name: str, images: Tensor) -> None:
    rela = build(name, with_rela=True)
    assert isinstance(rela, ReLA)
    rela.phase_steps = 2
    losses = train(rela, images, 4)
    assert rela.switch_step == 2
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert rela.views == rela.method.views


def test_it_says_in_its_docstring_where_it_is_from(name: str) -> None:
    assert (methods.get(name).__doc__ or "").strip()
    assert all(view.crop is not None for view in methods.get(name).views)


def test_a_parameter_has_the_kind_of_its_default_and_a_whole_number_may_stand_for_any() -> None:
    found = methods.resolved("byol", {"momentum": 1}, "here")
    assert (found["momentum"], type(found["momentum"]), found["projection"]) == (1.0, float, 256)
    for wrong in ({"momentum": True}, {"momentum": "0.9"}, {"projection": 2.0}, {"moment": 0.9}):
        with pytest.raises(UserError, match="here: params"):
            methods.resolved("byol", wrong, "here")
