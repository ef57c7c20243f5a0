"""NNCLR: Dwibedi et al. 2021, "Nearest-neighbor contrastive learning of visual representations", arXiv 2104.14548."""

import torch
from lightly.models.modules import NNCLRPredictionHead, NNCLRProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from methods import Batch, Method, Queue, gather, methods
from methods.simclr import SimCLR


@methods.register("nnclr")
class NNCLR(Method):
    """A prediction of one view picks, among those of the batch, the one of the other view's nearest earlier neighbour.

    Loss: InfoNCE (equation 3) between NN(z, Q) and the predictions at temperature 0.1, in both directions. NN(z, Q) is
    the row of the queue Q nearest to the projection z; it has no gradient. Q holds 65,536 projections of first views,
    as in solo-learn and lightly: with fewer images than that, the nearest can be the image itself, an epoch earlier.
    Heads d -> 2048 -> 2048 -> 256 and 256 -> 4096 -> 256. Views: SimCLR's.
    """

    recordable = True
    views = SimCLR.views

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 2048,
        projection: int = 256,
        prediction: int = 4096,
        queue: int = 65536,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(backbone, dim)
        self.projector = NNCLRProjectionHead(dim, hidden, projection)
        self.predictor = NNCLRPredictionHead(projection, prediction, projection)
        self.queue = Queue(queue, projection)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        z = [self.projector(self.backbone(view)) for view in batch.views]
        p0, p1 = (normalize(gather(self.predictor(each)).float()) for each in z)
        z0, z1 = (normalize(gather(each.detach()).float()) for each in z)
        own = torch.arange(len(p0), device=p0.device)
        pairs = ((self.nearest(z0), p1), (self.nearest(z1), p0))
        losses = [cross_entropy(near @ p.T / self.temperature, own) for near, p in pairs]
        self.queue.keep(z0)
        return (losses[0] + losses[1]) / 2

    def nearest(self, z: Tensor) -> Tensor:
        """Return the rows of the queue that are nearest to rows (B, projection), all of them of length 1."""
        return self.queue.rows[(z @ self.queue.rows.T).argmax(dim=1)]
