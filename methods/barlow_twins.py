"""Barlow Twins: Zbontar et al. 2021, "Self-supervised learning via redundancy reduction", arXiv 2103.03230."""

import torch
from lightly.models.modules import BarlowTwinsProjectionHead
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from methods import Batch, Method, gather, methods
from methods.byol import BYOL


@methods.register("barlow_twins")
class BarlowTwins(Method):
    """The cross-correlation of two views' projections, over the batch, is to be the identity.

    Loss: equation 1 with lambda = 0.005. Head d -> 8192 -> 8192 -> 8192 (section 2.2). Views: BYOL's (section 2.2).
    """

    version = 2
    recordable = True
    views = BYOL.views

    def __init__(self, backbone: nn.Module, dim: int, projection: int = 8192, off_diagonal: float = 0.005) -> None:
        super().__init__(backbone, dim)
        self.projector = BarlowTwinsProjectionHead(dim, projection, projection)
        self.off_diagonal = off_diagonal

    def loss(self, batch: Batch) -> Tensor:
        z0, z1 = (gather(self.projector(self.backbone(view)).float()) for view in batch.views)
        with torch.autocast(z0.device.type, enabled=False):
            z0, z1 = (batch_norm(z, None, None, training=True) for z in (z0, z1))
            count, size = z0.shape
            diagonal = (z0 * z1).sum(dim=0) / count
            # The squares of all correlations have this sum, too: their matrix is not made where it is the larger one.
            squares = (z0 @ z0.T) * (z1 @ z1.T) if count < size else (z0.T @ z1).square()
            others = squares.sum() / count**2 - diagonal.square().sum()
            return (1 - diagonal).square().sum() + self.off_diagonal * others
