"""The patch tokens of a vision transformer, for methods that mask or predict them.

The features are the backbone's own: the mean of all patch tokens, or its class token, which a loss of patches alone
trains only by what they, or a decoder, read from it.
"""

import math
from typing import cast

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import embedding, unfold

from bench.core.errors import UserError
from methods.parts import uniform


def transformer(backbone: nn.Module, class_token: bool = True) -> VisionTransformer:
    """Return the backbone, as the vision transformer that it is.

    Raises UserError when it is none, and when its features are its class token, unless they may be: `class_token`.
    """
    if not (isinstance(backbone, VisionTransformer) and backbone.dynamic_img_size):
        raise UserError(
            f"needs the patch tokens of a vision transformer, and the backbone is a {type(backbone).__name__}: use"
            " vit_micro, vit_tiny_cifar or one of timm's, such as vit_small_patch16_224"
        )
    if backbone.global_pool == "token" and not class_token:
        raise UserError(
            "trains patch tokens, and the backbone reads its class token: use vit_micro, vit_tiny_cifar or one of"
            " timm's that averages its patch tokens, such as vit_huge_patch14_gap_224"
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
        rows = torch.cat([before, take(own, kept)], dim=1)
    return cast(Tensor, vit.norm(vit.blocks(vit.norm_pre(rows))))


def pooled(vit: VisionTransformer, encoded: Tensor) -> Tensor:
    """Return the features (B, d) that the backbone reads from encoded tokens (B, p + n, d)."""
    return vit.forward_head(encoded, pre_logits=True)


def pixels(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Return the pixels (B, h w, 3 s s) of each patch of images (B, 3, size, size), whose patches have s pixels a side.

    A patch's values are in the order of channels, rows and columns.
    """
    return unfold(images, vit.patch_embed.patch_size, stride=vit.patch_embed.patch_size).mT


def take(rows: Tensor, places: Tensor) -> Tensor:
    """Return each image's rows (B, m, d) at places int64 (B, m), out of (B, n, d)."""
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2]))


def among(count: int, places: Tensor) -> Tensor:
    """Return bool (B, count): which of each image's `count` places are in int64 (B, m)."""
    mask = torch.zeros(len(places), count, dtype=torch.bool, device=places.device)
    return mask.scatter_(1, places, True)


def shuffled(images: Tensor, count: int) -> Tensor:
    """Return a random order int64 (B, count) of places for each image, of which the first ones are kept or masked."""
    return uniform(images, count).argsort(dim=1, stable=True)


def blocks(images: Tensor, height: int, width: int, aspect: tuple[float, float]) -> Tensor:
    """Return an order int64 (B, h w) of each image's patches, of which any first ones are a block at a random place.

    Patches are ordered by their distance from a point of the image, the larger one of the distances down and across. Of
    these the one down is divided by the block's aspect ratio (its height over its width), whose logarithm is uniform. A
    block at the border, or of a number of patches that makes no rectangle, is a rectangle with its rim cut. All images
    thus have equally many patches in it, whatever the grid.

    Args:
        images: (B, ...).
        height: h, in patches.
        width: w, in patches.
        aspect: the smallest and the largest aspect ratio.
    """
    down, across, ratio = uniform(images, 3)[:, :, None].unbind(1)
    low, high = map(math.log, aspect)
    stretch = (low + (high - low) * ratio).exp()
    rows, columns = (torch.arange(side, device=images.device) + 0.5 for side in (height, width))
    vertical = (rows - height * down).abs() / stretch
    distance = torch.maximum(vertical[:, :, None], (columns - width * across).abs()[:, None, :])
    return distance.flatten(1).argsort(dim=1, stable=True)


def mask_pair(vit: VisionTransformer, images: Tensor, share: float) -> Tensor:
    """Return which patches to mask, int64 (B, m): a block in one of two views, counted through both of them."""
    height, width = vit.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
    order = blocks(images, height, width, (0.3, 1 / 0.3))[:, : max(1, round(share * height * width))]
    return order.add(uniform(images, 1) < 0.5, alpha=height * width)


def encode_pair(
    vit: VisionTransformer, views: list[Tensor], places: Tensor, mask: Tensor | None = None
) -> list[Tensor]:
    """Return features (2B, d) of two views of B images, an image's one after the other, and their patches (B m, d).

    Args:
        vit: what encodes them.
        views: two of (B, 3, size, size).
        places: int64 (B, m), patches counted through both views.
        mask: (d,), stands in place of those patches; None: they are seen.
    """
    tokens = patches(vit, torch.stack(views, dim=1).flatten(0, 1))
    _, height, width, _ = tokens.shape
    if mask is not None:
        hidden = among(2 * height * width, places).view(-1, height, width, 1)
        tokens = torch.where(hidden, mask.to(tokens.dtype), tokens)
    encoded = encode(vit, tokens)
    own = encoded[:, vit.num_prefix_tokens :].reshape(len(places), 2 * height * width, -1)
    return [pooled(vit, encoded), take(own, places).flatten(0, 1)]


class Predictor(nn.Module):
    """A narrow transformer that makes a vector of each wanted patch from the encoded tokens of others.

    A wanted patch enters as a learnt mask token. Patches get the positions of their places in the grid, fixed sines and
    cosines; the backbone's own tokens, such as a class token, get none. A head of attention is 32 wide.

    Args:
        vit: whose tokens it reads.
        width: of its own tokens, as a share of those of `vit`, rounded to a multiple of 32.
        depth: how many blocks it has, as a share of those of `vit`.
        size: of the vectors that it makes.
    """

    def __init__(self, vit: VisionTransformer, width: float, depth: float, size: int) -> None:
        super().__init__()
        heads, count = (max(1, round(x)) for x in (width * vit.embed_dim / 32, depth * len(vit.blocks)))
        self.width = 32 * heads
        self.embed = nn.Linear(vit.embed_dim, self.width)
        self.mask = nn.Parameter(0.02 * torch.randn(self.width))
        self.blocks = nn.Sequential(*(Block(self.width, heads, qkv_bias=True) for _ in range(count)))
        self.norm = nn.LayerNorm(self.width)
        self.out = nn.Linear(self.width, size)

    def forward(self, encoded: Tensor, kept: Tensor, wanted: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, m, size) for wanted patches (B, m), from tokens (B, p + n, d) of kept ones (B, n) of a grid."""
        places = build_sincos2d_pos_embed(list(grid), self.width, dtype=self.mask.dtype, device=self.mask.device)
        seen = self.embed(encoded)
        own = seen.shape[1] - kept.shape[1]
        rows = [seen[:, :own], seen[:, own:] + embedding(kept, places), self.mask + embedding(wanted, places)]
        made: Tensor = self.blocks(torch.cat(rows, dim=1))[:, -wanted.shape[1] :]
        return cast(Tensor, self.out(self.norm(made)))
