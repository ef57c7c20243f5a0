"""SimCLR: Chen et al. 2020, "A simple framework for contrastive learning", arXiv 2002.05709."""

import torch
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from methods import Batch, Method, View, gather, methods

VIEW = View(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)


@methods.register("simclr")
class SimCLR(Method):
    """Two views of an image agree among all views of the batch.

    Loss: NT-Xent (equation 1) at temperature 0.5, the paper's best on CIFAR-10 (appendix B.9). Head d -> d -> 128.
    Views: the paper's for ImageNet, colour strength 1 and blur (appendix A); on CIFAR-10 it has colour strength 0.5 and
    no blur (appendix B.9).
    """

    recordable = True
    views = (VIEW, VIEW)

    def __init__(self, backbone: nn.Module, dim: int, projection: int = 128, temperature: float = 0.5) -> None:
        super().__init__(backbone, dim)
        self.projector = SimCLRProjectionHead(dim, dim, projection)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        z = torch.cat([normalize(gather(self.projector(self.backbone(view)))) for view in batch.views])
        logits = z @ z.T / self.temperature
        # No view is its own partner. (lightly's loss takes the diagonal out by a mask, and a GPU's host waits for it.)
        logits.fill_diagonal_(-torch.inf)
        partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
        return cross_entropy(logits, partner)
