"""MAE: He et al. 2022, "Masked autoencoders are scalable vision learners", arXiv 2111.06377."""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from methods import Batch, Method, View, methods
from methods.tokens import Predictor, encode, patches, pixels, shuffled, take, transformer


@methods.register("mae")
class MAE(Method):
    """The encoder sees a quarter of the patches, and a decoder makes the pixels of the others.

    Loss: the mean squared error of the masked patches' pixels, each patch standardised by its own mean and (unbiased)
    variance + 1e-6 (section 3 and the public code). 75 % are masked, at random. The decoder is half as wide as the
    encoder and has a third of its blocks, which is the paper's for ViT-L: 8 blocks of width 512 for 24 of width 1024.
    Its positions are fixed sines and cosines, as there; the encoder's are the backbone's own, learnt. View: a crop of
    0.2 of the area or more and a flip (the public code).
    """

    family = "masked"
    needs_tokens = True
    views = (View(crop=(0.2, 1.0), jitter=0.0, grey=0.0),)

    def __init__(
        self, backbone: nn.Module, dim: int, masked: float = 0.75, width: float = 0.5, depth: float = 1 / 3
    ) -> None:
        super().__init__(backbone, dim)
        vit = transformer(backbone)
        self.masked = masked
        self.decoder = Predictor(vit, width, depth, 3 * vit.patch_embed.patch_size[0] ** 2)

    def loss(self, batch: Batch) -> Tensor:
        vit, (images,) = transformer(self.backbone), batch.views
        tokens = patches(vit, images)
        _, height, width, _ = tokens.shape
        order = shuffled(images, height * width)
        count = max(1, int(height * width * (1 - self.masked)))
        kept, hidden = order[:, :count], order[:, count:]
        made = self.decoder(encode(vit, tokens, kept), kept, hidden, (height, width))
        target = take(pixels(vit, images), hidden).float()
        variance, mean = torch.var_mean(target, dim=2, keepdim=True)
        return mse_loss(made.float(), (target - mean) / (variance + 1e-6).sqrt())
