"""Barlow Twins: Zbontar et al. 2021, "Self-supervised learning via redundancy reduction", arXiv 2103.03230."""

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from torch import Tensor, nn

from bench.distributed import gather
from methods.base import Batch, Method, methods
from methods.byol import BYOL


@methods.register("barlow_twins")
class BarlowTwins(Method):
    """The cross-correlation of two views' projections, over the batch, is to be the identity.

    Loss: equation 1 with lambda = 0.005. Head d -> 8192 -> 8192 -> 8192 (section 2.2). Views: BYOL's (section 2.2).
    """

    views = BYOL.views

    def __init__(self, backbone: nn.Module, dim: int, projection: int = 8192, off_diagonal: float = 0.005) -> None:
        super().__init__(backbone, dim)
        self.projector = BarlowTwinsProjectionHead(dim, projection, projection)
        self.criterion = BarlowTwinsLoss(off_diagonal)

    def loss(self, batch: Batch) -> Tensor:
        z0, z1 = (gather(self.projector(self.backbone(view)).float()) for view in batch.views)
        loss: Tensor = self.criterion(z0, z1)
        return loss
