"""Patch tokens: what a vision transformer makes of them is what it makes of an image."""

import pytest
import torch
from torch import nn

from bench.core.errors import UserError
from bench.models.backbones import build_backbone
from methods.tokens import encode, patches, pooled, transformer

WITH_CLASS_TOKEN = "vit_tiny_patch16_224"


@pytest.mark.parametrize(("name", "size"), [("vit_micro", 32), ("vit_micro", 12), (WITH_CLASS_TOKEN, 32)])
def test_all_tokens_encoded_and_pooled_are_the_features(name: str, size: int) -> None:
    vit = transformer(build_backbone(name, size).module).eval()
    images = torch.randn(2, 3, size, size)
    tokens = patches(vit, images)
    side = size // (16 if name == WITH_CLASS_TOKEN else 4)
    assert tokens.shape == (2, side, side, vit.embed_dim)
    torch.testing.assert_close(pooled(vit, encode(vit, tokens)), vit(images))


@pytest.mark.parametrize("name", ["vit_micro", WITH_CLASS_TOKEN])
def test_a_kept_patch_has_its_own_position_and_sees_no_other(name: str) -> None:
    vit = transformer(build_backbone(name, 64).module).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = patches(vit, images)
    count = tokens.shape[1] * tokens.shape[2]
    before = vit.num_prefix_tokens
    torch.testing.assert_close(encode(vit, tokens, torch.arange(count).expand(2, -1)), encode(vit, tokens))
    kept = torch.tensor([[3, 1], [0, 2]])
    seen = encode(vit, tokens, kept)
    assert seen.shape == (2, before + 2, vit.embed_dim)
    changed = tokens.clone()
    changed.flatten(1, 2)[:, 5:] += 1  # views of the same memory: patches that nobody keeps
    torch.testing.assert_close(encode(vit, changed, kept), seen)
    turned = encode(vit, tokens, kept.flip(1))
    torch.testing.assert_close(turned[:, before:], seen[:, before:].flip(1), rtol=1e-4, atol=1e-5)


def test_a_network_without_patch_tokens_is_refused() -> None:
    for network in (build_backbone("resnet_small", 32).module, nn.Identity()):
        with pytest.raises(UserError, match=f"is a {type(network).__name__}: use vit_micro"):
            transformer(network)
