"""EMP-SSL: Tong et al. 2023, "Towards self-supervised learning in one training epoch", arXiv 2304.03977."""

import torch
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from bench.core.errors import UserError
from methods import Accelerator, Batch, Method, View, accelerators, gather


@accelerators.register("many_patches")
class ManyPatches(Accelerator):
    """Few epochs of many small crops: an image's crops agree, while each crop of a batch fills the space.

    Loss: -200 cos(z, mean of z over the image's crops), the mean over crops and images, minus the mean over crops of
    the total coding rate of the batch's z. As in the public code: eps = 0.2 for eps^2, the head d -> 4096 -> 4096 ->
    1024, z of length 1, crops of a quarter of the area at full size. The paper has 20 and 200 `patches`.

    What differs: crops have aspect ratios of 3/4 to 4/3, as there for ImageNet alone; features are the backbone's, of
    whole images, where the paper averages the head's first layer over 128 crops.

    `size`: a view's side, as a share of the cell's. Raises UserError unless it is in (0, 1], and `patches` 2 or more.
    """

    recordable = True

    def __init__(
        self,
        method: Method,
        target_dim: int | None,
        patches: int = 20,
        size: float = 1.0,
        invariance: float = 200.0,
        epsilon: float = 0.2,
        hidden: int = 4096,
        projection: int = 1024,
    ) -> None:
        if patches < 2 or not 0 < size <= 1:
            raise UserError("many_patches: set accelerate.patches to 2 or more, size above 0 and to 1 at most")
        super().__init__(method, target_dim)
        self.views = patches * (View((0.25, 0.25), saturation=0.4, hue=0.2, blur=0.1, solarise=0.1, size=size),)
        self.projector = BarlowTwinsProjectionHead(self.dim, hidden, projection)
        self.invariance, self.epsilon = invariance, epsilon

    def loss(self, batch: Batch) -> Tensor:
        rows = normalize(self.projector(self.backbone(torch.cat(batch.views))).float())
        z = gather(torch.stack(rows.chunk(len(batch.views)), dim=1)).transpose(0, 1)  # (patches, B, p)
        alike = cosine_similarity(z, z.mean(dim=0), dim=2).mean()
        return -self.invariance * alike - coding_rate(z, self.epsilon).mean()


def coding_rate(z: Tensor, epsilon: float) -> Tensor:
    """Return log det(I + p / (B epsilon) Z^T Z) / 2 of each Z (B, p) in (..., B, p), by Cholesky: nothing waits."""
    count, dim = z.shape[-2:]
    with torch.autocast(z.device.type, enabled=False):
        square = dim / (count * epsilon) * (z @ z.mT if count < dim else z.mT @ z)  # of one determinant with I
        factor, _ = torch.linalg.cholesky_ex(square + torch.eye(square.shape[-1], device=z.device, dtype=z.dtype))
        logarithms: Tensor = factor.diagonal(dim1=-2, dim2=-1).log()
        return logarithms.sum(dim=-1)
