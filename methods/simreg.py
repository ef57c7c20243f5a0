"""SimReg: Navaneet et al. 2021, "Regression as a simple yet effective tool for distillation", arXiv 2201.05131."""

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from methods import Accelerator, Batch, Method, accelerators
from methods.moco import MoCo


@accelerators.register("simreg")
class SimReg(Accelerator):
    """A prior is distilled for the whole budget: an MLP on the backbone regresses the prior's features.

    Loss: the mean over images and views of || q / |q| - t / |t| ||^2 = 2 - 2 cos(q, t), with q the output of the MLP
    and t the image's target. Head d -> 2d -> d -> 2d -> k, without batch norm and ReLU after its second layer (the
    public code's, of four layers). Views: those of MoCo v2.

    What differs: the paper's teacher sees augmented images, and its features are used as they are. Here t is ReLA's
    target, of the un-augmented image, reduced to k components and standardised; a step sees two views, not one.
    """

    recordable = True
    needs_prior = True
    wants_targets = True
    views = MoCo.views

    def __init__(self, method: Method, target_dim: int) -> None:
        super().__init__(method, target_dim)
        d = self.dim
        self.head = ProjectionHead(
            [
                (d, 2 * d, nn.BatchNorm1d(2 * d), nn.ReLU()),
                (2 * d, d, None, None),
                (d, 2 * d, nn.BatchNorm1d(2 * d), nn.ReLU()),
                (2 * d, target_dim, None, None),
            ]
        )

    def loss(self, batch: Batch) -> Tensor:
        assert batch.targets is not None
        q = (self.head(self.backbone(x)).float() for x in batch.views)
        return 2 - 2 * torch.stack([cosine_similarity(each, batch.targets) for each in q]).mean()
