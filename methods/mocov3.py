"""MoCo v3: Chen et al. 2021, "An empirical study of training self-supervised vision transformers", arXiv 2104.02057."""

from itertools import pairwise

import torch
from lightly.models.modules.heads import ProjectionHead
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from methods import Batch, Method, Momentum, gather, methods
from methods.byol import BYOL


@methods.register("mocov3")
class MoCoV3(Method):
    """A predicted query picks, among the batch's keys, the one that a momentum network made of the other view.

    Loss: InfoNCE (equation 1) times 2 tau, in both directions; tau = 0.2 (the public code has 1 for ResNets). Heads as
    there: d -> 4096 -> 256, of a ViT d -> 4096 -> 4096 -> 256, and 256 -> 4096 -> 256, with batch norm after each layer
    but the last of a ResNet's predictor. A ViT's patch projection stays random (section 4.2). Momentum 0.99: the
    paper's rises to 1 (`protocol.teacher: cosine`). Views: BYOL's; the public code crops a ResNet's to 0.2 or more.
    """

    recordable = True
    views = BYOL.views

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 4096,
        projection: int = 256,
        temperature: float = 0.2,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(backbone, dim)
        if vit := isinstance(backbone, VisionTransformer):
            backbone.patch_embed.requires_grad_(False)
        self.query = nn.Sequential(self.backbone, mlp([dim, *[hidden] * (2 if vit else 1), projection]))
        self.predictor = mlp([projection, hidden, projection], norm=vit)
        self.key, self.temperature = Momentum(self.query, momentum), temperature

    def loss(self, batch: Batch) -> Tensor:
        q0, q1 = (normalize(gather(self.predictor(self.query(view))).float()) for view in batch.views)
        k0, k1 = (normalize(gather(self.key(view)).float()) for view in batch.views)
        own = torch.arange(len(q0), device=q0.device)
        both = cross_entropy(q0 @ k1.T / self.temperature, own) + cross_entropy(q1 @ k0.T / self.temperature, own)
        return 2 * self.temperature * both


def mlp(sizes: list[int], norm: bool = True) -> ProjectionHead:
    """Return linear layers without bias, batch norm and ReLU between them; `norm`: batch norm after the last, too."""
    *inner, (hidden, out) = pairwise(sizes)
    blocks = [(a, b, nn.BatchNorm1d(b), nn.ReLU(), False) for a, b in inner]
    last = nn.BatchNorm1d(out, affine=False) if norm else None
    return ProjectionHead([*blocks, (hidden, out, last, None, False)])
