"""I-JEPA: Assran et al. 2023, "Self-supervised learning from images", arXiv 2301.08243."""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss

from methods import Batch, Method, Momentum, View, methods
from methods.parts import uniform
from methods.tokens import Predictor, among, blocks, encode, patches, take, transformer


@methods.register("ijepa")
class IJEPA(Method):
    """A predictor makes the momentum encoder's tokens of four blocks of an image from patches outside of them.

    Loss: as in the public code the smooth L1 distance to the momentum encoder's tokens of the whole image, each token
    standardised by a layer norm (the paper has L2). A block has an aspect ratio of 0.75 to 1.5 (section 3). The
    predictor is half as wide as the encoder and has half of its blocks, which is the paper's for ViT-B: 6 of width 384
    for 12 of width 768. Momentum 0.996. View: a crop of 0.3 of the area or more, nothing else (the public code).

    What differs: a block has 17.5 % of the patches, where the paper draws 15 to 20 %. The context is as many patches
    outside of all blocks as every image has, at random, where the paper has those in a further block of 85 to 100 %,
    cut to the fewest of an image in the batch. Images thus have equally many, and steps the same FLOPs.

    The features are the mean of all patch tokens. A backbone that reads its class token is refused: the loss does not
    train it.
    """

    family = "predictive"
    needs_tokens = True
    class_token = False
    views = (View(crop=(0.3, 1.0), flip=0.0, jitter=0.0, grey=0.0),)

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        targets: int = 4,
        share: float = 0.175,
        width: float = 0.5,
        depth: float = 0.5,
        momentum: float = 0.996,
    ) -> None:
        super().__init__(backbone, dim)
        vit = transformer(backbone, self.class_token)
        self.targets, self.share = targets, share
        self.predictor = Predictor(vit, width, depth, dim)
        self.teacher = Momentum(backbone, momentum)

    def loss(self, batch: Batch) -> Tensor:
        vit, teacher, (images,) = transformer(self.backbone), transformer(self.teacher.module), batch.views
        with torch.no_grad():
            whole = encode(teacher, patches(teacher, images))[:, vit.num_prefix_tokens :]
            whole = layer_norm(whole.float(), whole.shape[2:])
        tokens = patches(vit, images)
        _, height, width, _ = tokens.shape
        size = max(1, int(self.share * height * width))
        targets = [blocks(images, height, width, (0.75, 1.5))[:, :size] for _ in range(self.targets)]
        hidden = among(height * width, torch.cat(targets, dim=1))
        outside = (uniform(images, height * width) + hidden).argsort(dim=1, stable=True)  # those in a block come last
        kept = outside[:, : max(1, height * width - self.targets * size)]
        context, wanted = encode(vit, tokens, kept), torch.cat(targets)
        made = self.predictor(context.repeat(self.targets, 1, 1), kept.repeat(self.targets, 1), wanted, (height, width))
        return smooth_l1_loss(made.float(), take(whole.repeat(self.targets, 1, 1), wanted))
