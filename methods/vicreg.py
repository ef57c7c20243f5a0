"""VICReg: Bardes et al. 2022, "Variance-invariance-covariance regularization", arXiv 2105.04906."""

import torch
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu

from methods import Batch, Method, gather, methods
from methods.byol import BYOL
from methods.parts import squares


@methods.register("vicreg")
class VICReg(Method):
    """Two views agree, while each projection varies over the batch and no two components covary.

    Loss: equation 6 with lambda = mu = 25 and nu = 1 as the public code has it: the squared distances of equation 5 are
    divided by the number of components, and the two variance terms are halved. Head d -> 8192 -> 8192 -> 8192 (section
    4.2). Views: BYOL's, as in the public code.
    """

    version = 2
    recordable = True
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
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def loss(self, batch: Batch) -> Tensor:
        z0, z1 = (gather(self.projector(self.backbone(view)).float()) for view in batch.views)
        with torch.autocast(z0.device.type, enabled=False):
            variance = (shortfall(z0) + shortfall(z1)) / 2
            terms = self.invariance * mse_loss(z0, z1) + self.variance * variance
            return terms + self.covariance * (covariance(z0) + covariance(z1))


def shortfall(z: Tensor) -> Tensor:
    """Return by how much the deviations of projections (B, p) miss 1, in the mean over components (equation 1)."""
    return relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """Return the squared entries of the covariance of projections (B, p) beside its diagonal, over p (equation 4)."""
    centred = z - z.mean(dim=0)
    return (squares(centred) / (len(z) - 1) ** 2 - z.var(dim=0).square().sum()) / z.shape[1]
