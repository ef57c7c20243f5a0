"""SEED: Fang et al. 2021, "Self-supervised distillation for visual representation", arXiv 2101.04731."""

import torch
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from methods import Accelerator, Batch, Method, Queue, accelerators, gather
from methods.moco import MoCo


@accelerators.register("seed")
class SEED(Accelerator):
    """A prior is distilled for the whole budget: its similarities to a queue of its features are to be the backbone's.

    Loss: the cross-entropy of the student's distribution over the queue, softmax(z D / 0.2), to the prior's,
    softmax(t D / 0.01), the mean over images and views; t is the image's target and z the output of an MLP, both of
    length 1, and D holds the targets of earlier batches, 65,536 rows, and before them t itself. Head d -> d -> k.
    Views: those of MoCo v2.

    What differs: the paper's teacher sees the view that the student sees, and its features are used as they are. Here t
    is ReLA's target, of the un-augmented image, reduced to k components and standardised; a step sees two views, not
    one.
    """

    recordable = True
    needs_prior = True
    wants_targets = True
    views = MoCo.views

    def __init__(
        self,
        method: Method,
        target_dim: int,
        queue: int = 65536,
        temperature: float = 0.2,
        prior_temperature: float = 0.01,
    ) -> None:
        super().__init__(method, target_dim)
        self.head = MoCoProjectionHead(self.dim, self.dim, target_dim)
        self.queue = Queue(queue, target_dim)
        self.temperature, self.prior_temperature = temperature, prior_temperature

    def loss(self, batch: Batch) -> Tensor:
        assert batch.targets is not None
        target = normalize(batch.targets)
        wanted = (self._similarities(target, target) / self.prior_temperature).softmax(dim=1)
        self.queue.keep(gather(target))
        z = (normalize(self.head(self.backbone(x)).float()) for x in batch.views)
        losses = [cross_entropy(self._similarities(each, target) / self.temperature, wanted) for each in z]
        return torch.stack(losses).mean()

    def _similarities(self, rows: Tensor, target: Tensor) -> Tensor:
        """Return the products (B, 1 + queue) of rows (B, k) with their own target and with the queue's rows."""
        return torch.cat([(rows * target).sum(dim=1, keepdim=True), rows @ self.queue.rows.T], dim=1)
