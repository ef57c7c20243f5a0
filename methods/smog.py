"""SMoG: Pang et al. 2022, "Synchronous momentum grouping", arXiv 2207.06167."""

import torch
from lightly.models.modules.heads import SMoGPredictionHead, SMoGProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from methods import Batch, Method, Momentum, View, gather, methods

VIEW = View(crop=(0.2, 1.0), jitter=1.0, blur=0.5)


@methods.register("smog")
class SMoG(Method):
    """A view predicts the group of the other view, while groups move towards their members, with gradient.

    Loss: cross-entropy of cosine similarities to 3,000 groups at temperature 0.1. The momentum network's projection of
    one view chooses the group; each group moves by 0.01 towards the mean of the student's projections that are nearest
    to it, before they are compared. Heads d -> 2048 -> 128 -> 2048 -> 128, momentum 0.99 and views as in lightly.

    What differs: lightly groups earlier projections anew by k-means, and makes the momentum network the student, every
    300 steps. Here groups only move, from random ones.
    """

    recordable = True
    views = (VIEW, VIEW)
    groups: Tensor
    next_groups: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 2048,
        projection: int = 128,
        groups: int = 3000,
        temperature: float = 0.1,
        group_momentum: float = 0.99,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(backbone, dim)
        self.student = nn.Sequential(self.backbone, SMoGProjectionHead(dim, hidden, projection))
        self.predictor = SMoGPredictionHead(projection, hidden, projection)
        self.teacher = Momentum(self.student, momentum)
        self.register_buffer("groups", normalize(torch.randn(groups, projection)))
        self.register_buffer("next_groups", self.groups.clone())
        self.temperature, self.group_momentum = temperature, group_momentum

    def loss(self, batch: Batch) -> Tensor:
        x0, x1 = batch.views
        z = self.student(x0)
        q, z, key = self.predictor(z).float(), z.float(), self.teacher(x1).float()
        with torch.autocast(z.device.type, enabled=False):
            groups = moved(self.groups, gather(z), self.group_momentum)
            self.next_groups.copy_(groups.detach())
            return cross_entropy(similarity(q, groups) / self.temperature, similarity(key, self.groups).argmax(dim=1))

    def after_step(self) -> None:
        super().after_step()
        self.groups.copy_(self.next_groups)


def similarity(rows: Tensor, groups: Tensor) -> Tensor:
    """Return the cosines (B, G) between rows (B, p) and groups (G, p)."""
    return normalize(rows) @ normalize(groups).T


def moved(groups: Tensor, rows: Tensor, momentum: float) -> Tensor:
    """Return m g + (1 - m) mean of the rows (B, p) nearest to g, with their gradient, of each group (G, p) with any.

    (lightly's `SMoGPrototypes` makes the host wait for which groups these are.)
    """
    nearest = similarity(rows.detach(), groups).argmax(dim=1)
    members = (nearest == torch.arange(len(groups), device=rows.device)[:, None]).to(rows.dtype)
    counts = members.sum(dim=1, keepdim=True)
    return torch.where(counts > 0, momentum * groups + (1 - momentum) * (members @ rows) / counts.clamp(min=1), groups)
