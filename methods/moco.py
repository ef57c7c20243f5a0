"""MoCo v2: Chen et al. 2020, "Improved baselines with momentum contrastive learning", arXiv 2003.04297."""

import torch
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from methods import Batch, Method, Momentum, Queue, View, gather, methods

VIEW = View(crop=(0.2, 1.0), saturation=0.4, blur=0.5)


@methods.register("moco")
class MoCo(Method):
    """A query picks its key, which a momentum network made of the other view, among those of earlier batches.

    Loss: InfoNCE (He et al. 2019, arXiv 1911.05722, equation 1) at temperature 0.2 (table 2), over a queue of 65,536
    keys. Head d -> d -> 128 and momentum 0.999 (there, sections 3.3 and 4.1). Views: section 3.
    """

    recordable = True
    views = (VIEW, VIEW)

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        projection: int = 128,
        queue: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
    ) -> None:
        super().__init__(backbone, dim)
        self.query = nn.Sequential(self.backbone, MoCoProjectionHead(dim, dim, projection))
        self.key = Momentum(self.query, momentum)
        self.queue = Queue(queue, projection)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        x0, x1 = batch.views
        query, key = normalize(self.query(x0).float()), normalize(self.key(x1).float())
        positive = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, query @ self.queue.rows.T], dim=1) / self.temperature
        self.queue.keep(gather(key))
        return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
