"""FroSSL: Skean et al. 2023, "Frobenius norm minimization for self-supervised learning", arXiv 2310.02903."""

import torch
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from methods import Batch, Method, View, gather, methods
from methods.parts import squares

VIEW = View(saturation=0.4)


@methods.register("frossl")
class FroSSL(Method):
    """Two views agree, while each one's covariance has a small Frobenius norm: its variance is spread evenly.

    Loss, of components that are centred over the batch and scaled to length sqrt(p): the mean squared difference of the
    views, and for each view the logarithm of its covariance's squared entries, summed up. Head d -> 2048 -> 2048 ->
    1024, a weight of 1, and views as in the public code for CIFAR, whose normalisation of two views this is: that of
    more views, and lightly's, are others.
    """

    recordable = True
    views = (VIEW, VIEW)

    def __init__(
        self, backbone: nn.Module, dim: int, hidden: int = 2048, projection: int = 1024, invariance: float = 1.0
    ) -> None:
        super().__init__(backbone, dim)
        self.projector = BarlowTwinsProjectionHead(dim, hidden, projection)
        self.invariance = invariance

    def loss(self, batch: Batch) -> Tensor:
        z0, z1 = (gather(self.projector(self.backbone(view)).float()) for view in batch.views)
        with torch.autocast(z0.device.type, enabled=False):
            z0, z1 = (z.shape[1] ** 0.5 * normalize(z - z.mean(dim=0), dim=0) for z in (z0, z1))
            loss = self.invariance * mse_loss(z0, z1)
            for z in (z0, z1):
                loss = loss + (squares(z) / len(z) ** 2).log()
            return loss
