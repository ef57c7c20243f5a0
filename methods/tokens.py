"""The patch tokens of a vision transformer, for methods that mask or predict them."""

from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bench.core.errors import UserError


def transformer(backbone: nn.Module) -> VisionTransformer:
    """Return the backbone, as the vision transformer that it is. Raises UserError when it is none."""
    if not (isinstance(backbone, VisionTransformer) and backbone.dynamic_img_size):
        raise UserError(
            f"needs the patch tokens of a vision transformer, and the backbone is a {type(backbone).__name__}: use"
            " vit_micro, vit_tiny_cifar or one of timm's, such as vit_small_patch16_224"
        )
    return backbone


def patches(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Return the patch tokens (B, h, w, d) of images (B, 3, size, size), without positions."""
    return cast(Tensor, vit.patch_embed(images))


def encode(vit: VisionTransformer, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
    """Return what the blocks make of patch tokens (B, h, w, d), with their positions: (B, p + n, d), normalised.

    The p tokens before them are the backbone's own, such as a class token: `vit.num_prefix_tokens`.

    Args:
        kept: int64 (B, n), which patches the blocks see, counted row by row; None: all, n = h w.
    """
    rows = vit._pos_embed(tokens)
    if kept is not None:
        before, own = rows[:, : vit.num_prefix_tokens], rows[:, vit.num_prefix_tokens :]
        rows = torch.cat([before, own.gather(1, kept[:, :, None].expand(-1, -1, own.shape[2]))], dim=1)
    return cast(Tensor, vit.norm(vit.blocks(vit.norm_pre(rows))))


def pooled(vit: VisionTransformer, encoded: Tensor) -> Tensor:
    """Return the features (B, d) that the backbone reads from encoded tokens (B, p + n, d)."""
    return vit.forward_head(encoded, pre_logits=True)
