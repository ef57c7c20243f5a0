"""DCL: Yeh et al. 2022, "Decoupled contrastive learning", arXiv 2110.06848."""

import torch
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn
from torch.nn.functional import normalize

from methods import Batch, Method, gather, methods
from methods.simclr import SimCLR


@methods.register("dcl")
class DCL(Method):
    """SimCLR whose denominator has the views of other images only: an easy positive no longer scales the gradient.

    Loss: -<z, z'> / tau + log sum exp(<z, .> / tau) over both views of all other images (equation 6), in the mean over
    the views of the batch, with tau = 0.1 (lightly's). Head d -> d -> 128 and views: SimCLR's.
    """

    recordable = True
    views = SimCLR.views

    def __init__(self, backbone: nn.Module, dim: int, projection: int = 128, temperature: float = 0.1) -> None:
        super().__init__(backbone, dim)
        self.projector = SimCLRProjectionHead(dim, dim, projection)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        z0, z1 = (normalize(gather(self.projector(self.backbone(view))).float()) for view in batch.views)
        z, count = torch.cat([z0, z1]), len(z0)
        logits = (z @ z.T).float() / self.temperature
        logits.view(2, count, 2, count).diagonal(dim1=1, dim2=3).fill_(-torch.inf)  # both views of the image itself
        positive = self.weighted((z0 * z1).sum(dim=1)) / self.temperature
        return logits.logsumexp(dim=1).mean() - positive.mean()

    def weighted(self, similarity: Tensor) -> Tensor:
        """Return the similarities (B,) of the images' two views, each with its weight."""
        return similarity
