"""MSN: Assran et al. 2022, "Masked siamese networks for label-efficient learning", arXiv 2204.07141."""

import math

import torch
from lightly.models.modules.heads import MSNProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from methods import Batch, Method, Momentum, View, gather, methods
from methods.parts import balanced
from methods.tokens import encode, patches, pooled, shuffled, transformer

VIEW = View(crop=(0.3, 1.0), saturation=0.4, blur=0.5)
FOCAL = View(crop=(0.05, 0.3), saturation=0.4, blur=0.5, size=96 / 224)


@methods.register("msn")
class MSN(Method):
    """Views with patches left out pick the prototypes that the momentum network picks for another, whole view.

    Loss: the cross-entropy to the sharpened target, minus the entropy of the mean prediction, which is at most
    ln(prototypes) (equation 1). The settings are the public code's for ViT-S: 1,024 prototypes, temperature 0.1,
    targets to the power of 1 / 0.25 and balanced by three Sinkhorn iterations, momentum 0.996; head d -> 2048 -> 2048
    -> 256 with batch norm; a target view, an anchor that lacks 15 % of its patches, and ten small anchors.

    What differs: each image leaves out patches of its own, where the public code has one draw for a batch.
    """

    family = "masked"
    needs_tokens = True
    views = (VIEW, VIEW, *[FOCAL] * 10)

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 2048,
        projection: int = 256,
        prototypes: int = 1024,
        dropped: float = 0.15,
        momentum: float = 0.996,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        entropy: float = 1.0,
    ) -> None:
        super().__init__(backbone, dim)
        self.anchor = nn.Sequential(self.backbone, MSNProjectionHead(dim, hidden, projection))
        self.target = Momentum(self.anchor, momentum)
        bound = projection**-0.5
        self.prototypes = nn.Parameter(torch.empty(prototypes, projection).uniform_(-bound, bound))
        self.dropped, self.entropy = dropped, entropy
        self.temperature, self.sharpening = temperature, sharpening

    def loss(self, batch: Batch) -> Tensor:
        whole, dropped, *focal = batch.views
        vit, head = transformer(self.backbone), self.anchor[1]
        with torch.no_grad():
            sharp = (self._scores(self.target(whole)) / self.sharpening).log_softmax(dim=1)
            wanted = balanced(sharp, epsilon=1.0)
        tokens = patches(vit, dropped)
        count = tokens.shape[1] * tokens.shape[2]
        kept = shuffled(dropped, count)[:, : max(1, int(count * (1 - self.dropped)))]
        features = [pooled(vit, encode(vit, tokens, kept)), self.backbone(torch.cat(focal))]
        scores = self._scores(head(torch.cat(features)))
        mean = gather(scores.softmax(dim=1).view(-1, len(whole), scores.shape[1]).mean(dim=0)).mean(dim=0)
        missing = (mean * mean.log()).sum() + math.log(len(mean))  # of the largest entropy
        return cross_entropy(scores, wanted.repeat(1 + len(focal), 1)) + self.entropy * missing

    def _scores(self, rows: Tensor) -> Tensor:
        """Return the cosines (B, prototypes) of projections and prototypes, over the temperature."""
        return normalize(rows.float()) @ normalize(self.prototypes.float()).T / self.temperature
