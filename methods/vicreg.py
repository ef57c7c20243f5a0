"""VICReg: Bardes et al. 2022, "Variance-invariance-covariance regularization", arXiv 2105.04906."""

from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn

from bench.distributed import gather
from methods.base import Batch, Method, methods
from methods.byol import BYOL


@methods.register("vicreg")
class VICReg(Method):
    """Two views agree, while each projection varies over the batch and no two components covary.

    Loss: equation 6 with lambda = mu = 25 and nu = 1. Head d -> 8192 -> 8192 -> 8192 (section 4.2). Views: BYOL's, as
    in the public code.
    """

    views = BYOL.views

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        projection: int = 8192,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__(backbone, dim)
        self.projector = VICRegProjectionHead(dim, projection, projection)
        self.criterion = VICRegLoss(invariance, variance, covariance)

    def loss(self, batch: Batch) -> Tensor:
        z0, z1 = (gather(self.projector(self.backbone(view)).float()) for view in batch.views)
        loss: Tensor = self.criterion(z0, z1)
        return loss
