"""SimMIM: Xie et al. 2022, "A simple framework for masked image modeling", arXiv 2111.09886."""

import math

import torch
from torch import Tensor, nn

from methods import Batch, Method, View, methods
from methods.tokens import among, encode, patches, pixels, shuffled, transformer


@methods.register("simmim")
class SimMIM(Method):
    """The encoder sees all patches, most of them as a mask token, and one linear layer makes their pixels.

    Loss: the mean absolute error of the masked pixels. 60 % are masked, in squares of 32 of 224 pixels: at other sizes
    the nearest number of patches, or the next smaller one that divides the image. View: a crop of 0.67 of the area or
    more and a flip. All of it as in the public code.
    """

    family = "masked"
    needs_tokens = True
    views = (View(crop=(0.67, 1.0), jitter=0.0, grey=0.0),)

    def __init__(self, backbone: nn.Module, dim: int, masked: float = 0.6, square: float = 32 / 224) -> None:
        super().__init__(backbone, dim)
        self.masked, self.square = masked, square
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))
        self.decoder = nn.Linear(dim, 3 * transformer(backbone).patch_embed.patch_size[0] ** 2)

    def loss(self, batch: Batch) -> Tensor:
        vit, (images,) = transformer(self.backbone), batch.views
        tokens = patches(vit, images)
        count, side, _, _ = tokens.shape
        unit = max(each for each in range(1, max(1, round(self.square * side)) + 1) if side % each == 0)
        squares = side // unit
        hidden = shuffled(images, squares**2)[:, : math.ceil(self.masked * squares**2)]
        mask = among(squares**2, hidden).view(count, squares, squares)
        mask = mask.repeat_interleave(unit, 1).repeat_interleave(unit, 2)
        encoded = encode(vit, torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens))
        made: Tensor = self.decoder(encoded[:, vit.num_prefix_tokens :])
        error = (made.float() - pixels(vit, images)).abs().mean(dim=2)
        return (error * mask.flatten(1)).sum() / (hidden.numel() * unit**2)
