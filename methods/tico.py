"""TiCo: Zhu et al. 2022, "Transformation invariance and covariance contrast", arXiv 2206.10698."""

import torch
from lightly.models.modules.heads import TiCoProjectionHead
from torch import Tensor, nn
from torch.nn.functional import normalize

from methods import Batch, Method, Momentum, gather, methods
from methods.byol import BYOL


@methods.register("tico")
class TiCo(Method):
    """A projection agrees with the momentum network's of the other view and avoids where earlier projections lie.

    Loss: equation 4, 1 - <z, z'> + rho z^T C z in the mean over the batch, z of the first view and z' the momentum
    network's of the second, both of length 1. C <- beta C + (1 - beta) (mean of z z^T), from 0, the batch included, and
    constant for the gradient. rho = 8 and beta = 0.9 (lightly's, which it has from the paper). Head d -> 4096 -> 256.
    Momentum 0.99: the paper's rises to 1, as with `protocol.teacher: cosine`. Views: BYOL's.
    """

    recordable = True
    views = BYOL.views
    covariance: Tensor
    next_covariance: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 4096,
        projection: int = 256,
        rho: float = 8.0,
        beta: float = 0.9,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(backbone, dim)
        self.student = nn.Sequential(self.backbone, TiCoProjectionHead(dim, hidden, projection))
        self.teacher = Momentum(self.student, momentum)
        self.rho, self.beta = rho, beta
        self.register_buffer("covariance", torch.zeros(projection, projection))
        self.register_buffer("next_covariance", torch.zeros(projection, projection))

    def loss(self, batch: Batch) -> Tensor:
        x0, x1 = batch.views
        z, target = (normalize(gather(network(x)).float()) for network, x in ((self.student, x0), (self.teacher, x1)))
        with torch.autocast(z.device.type, enabled=False):
            fixed = z.detach()
            covariance = self.beta * self.covariance + (1 - self.beta) * (fixed.T @ fixed) / len(fixed)
            self.next_covariance.copy_(covariance)
            agreement, contrast = (z * target).sum(dim=1).mean(), ((z @ covariance) * z).sum(dim=1).mean()
            return 1 - agreement + self.rho * contrast

    def after_step(self) -> None:
        super().after_step()
        self.covariance.copy_(self.next_covariance)  # which is as it was if the step was one on targets
