"""The settings that each method has if a grid says nothing, as its docstring has them from its paper or public code."""

import pytest
import torch
from torch import nn

from bench.core.errors import UserError
from bench.models.backbones import build_backbone
from methods import Batch, methods

DINO = {"hidden": 2048, "bottleneck": 256, "momentum": 0.99, "student_temperature": 0.1, "teacher_temperature": 0.04}
DEFAULTS = {
    "dcl": {"projection": 128, "temperature": 0.1},
    "dclw": {"projection": 128, "temperature": 0.1, "sigma": 0.5},
    "dino_multicrop": {**DINO, "outputs": 2048},
    "dinov2": {**DINO, "outputs": 65536, "masked": 0.3, "koleo": 0.1, "momentum": 0.992, "teacher_temperature": 0.07},
    "fastsiam": {"projection": 2048, "bottleneck": 512},
    "frossl": {"hidden": 2048, "projection": 1024, "invariance": 1.0},
    "ibot": {**DINO, "outputs": 8192, "masked": 0.3, "momentum": 0.996},
    "ijepa": {"targets": 4, "share": 0.175, "width": 0.5, "depth": 0.5, "momentum": 0.996},
    "lejepa": {"hidden": 2048, "projection": 128, "directions": 1024, "weight": 0.05},
    "mae": {"masked": 0.75, "width": 0.5, "depth": 1 / 3},
    "mmcr": {"hidden": 8192, "projection": 512, "pairs": 4, "momentum": 0.99},
    "mocov3": {"hidden": 4096, "projection": 256, "temperature": 0.2, "momentum": 0.99},
    "msn": {
        **{"hidden": 2048, "projection": 256, "prototypes": 1024, "dropped": 0.15, "momentum": 0.996},
        **{"temperature": 0.1, "sharpening": 0.25, "entropy": 1.0},
    },
    "nnclr": {"hidden": 2048, "projection": 256, "prediction": 4096, "queue": 65536, "temperature": 0.1},
    "ressl": {
        **{"hidden": 4096, "projection": 512, "queue": 131072, "momentum": 0.999},
        **{"student_temperature": 0.1, "teacher_temperature": 0.04},
    },
    "simmim": {"masked": 0.6, "square": 32 / 224},
    "smog": {
        **{"hidden": 2048, "projection": 128, "groups": 3000, "temperature": 0.1},
        **{"group_momentum": 0.99, "momentum": 0.99},
    },
    "swav_multicrop": {
        **{"projection": 128, "prototypes": 3000, "queue": 3840, "queue_after": 15 * 1_281_167},
        **{"temperature": 0.1, "epsilon": 0.05},
    },
    "tico": {"hidden": 4096, "projection": 256, "rho": 8.0, "beta": 0.9, "momentum": 0.99},
    "wmse": {"hidden": 1024, "projection": 64, "sub_batch": 128},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_method_has_the_settings_of_its_docstring(name: str) -> None:
    assert methods.resolved(name, {}, "here") == DEFAULTS[name]


def test_mocov3s_heads_have_no_biases() -> None:
    model = methods.get("mocov3")(nn.Linear(4, 4), 4, hidden=8)
    heads = [each for head in (model.query[1], model.predictor) for each in head.modules()]
    assert [layer.bias is None for layer in heads if isinstance(layer, nn.Linear)] == [True] * 4


@pytest.mark.parametrize(("masked", "kept"), [(0.75, 2), (0.99, 1)])
def test_mae_sees_the_patches_that_are_not_masked_and_one_at_least(masked: float, kept: int) -> None:
    backbone = build_backbone("vit_micro", 12)
    model, seen = methods.get("mae")(backbone.module, backbone.dim, masked=masked), []
    model.decoder.register_forward_hook(lambda _, given, made: seen.append((given[1].shape, made.shape)))
    model.loss(Batch([torch.randn(2, 3, 12, 12)], torch.zeros(2)))
    assert seen == [((2, kept), (2, 9 - kept, 48))]


def test_an_unknown_name_is_told_with_what_it_should_be() -> None:
    with pytest.raises(UserError, match="unknown method 'byoll'; did you mean 'byol'"):
        methods.get("byoll")
