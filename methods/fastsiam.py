"""FastSiam: Pototzky et al. 2022, "Resource-efficient self-supervised learning on a single GPU", GCPR 2022."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods import Batch, methods
from methods.moco import VIEW
from methods.simsiam import SimSiam


@methods.register("fastsiam")
class FastSiam(SimSiam):
    """SimSiam with four views: each view's prediction has the mean of the three others' projections as its target.

    Loss: negative cosine similarity to the mean, a constant, of the other views' projections, in the mean over the
    views, as in lightly: a target of several views varies less, so that a batch can be small (doi
    10.1007/978-3-031-16788-1_4). Heads and views: SimSiam's.
    """

    recordable = True
    views = (VIEW, VIEW, VIEW, VIEW)  # type: ignore[assignment]  # SimSiam has two

    def loss(self, batch: Batch) -> Tensor:
        z = [self.projector(self.backbone(view)) for view in batch.views]
        p, targets = torch.stack([self.predictor(each) for each in z]).float(), torch.stack(z).detach().float()
        others = targets.sum(dim=0) - targets  # their mean, up to a length that a cosine does not see
        return -cosine_similarity(p, others, dim=2).mean()
