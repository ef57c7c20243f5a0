"""MMCR: Yerxa et al. 2023, "Maximum manifold capacity representations", arXiv 2303.03307."""

import torch
from lightly.models.modules.heads import MMCRProjectionHead
from torch import Tensor, nn
from torch.nn.functional import normalize

from methods import Batch, Method, Momentum, View, gather, methods
from methods.byol import BYOL


@methods.register("mmcr")
class MMCR(Method):
    """The centroids of images' views fill as many directions as they can, which also pulls an image's views together.

    Loss: minus the sum of the singular values of the batch's centroids, each the mean of an image's projections of
    length 1 by the student and by its momentum network. Head d -> 8192 -> 8192 -> 512, momentum 0.99, eight views (four
    pairs) as BYOL's, and no term for the spread within an image, as in the public code for ImageNet.
    """

    recordable = True
    views: tuple[View, ...] = 4 * BYOL.views

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 8192,
        projection: int = 512,
        pairs: int = 4,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(backbone, dim)
        self.views = pairs * BYOL.views
        self.student = nn.Sequential(self.backbone, MMCRProjectionHead(dim, hidden, projection))
        self.teacher = Momentum(self.student, momentum)

    def loss(self, batch: Batch) -> Tensor:
        z = [normalize(network(view).float()) for view in batch.views for network in (self.student, self.teacher)]
        centroids = gather(torch.stack(z).mean(dim=0))
        with torch.autocast(centroids.device.type, enabled=False):
            return -(centroids * polar(centroids)).sum()


@torch.no_grad()
def polar(matrix: Tensor) -> Tensor:
    """Return U V^T of a matrix U S V^T: the gradient of its sum of singular values, which is its product with U V^T.

    By forty steps of Newton and Schulz's iteration, enough for singular values above a millionth of the largest: unlike
    for an SVD the host does not wait for the device.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return polar(matrix.T).T
    x: Tensor = matrix / matrix.norm()
    for _ in range(40):
        x = torch.addmm(x, x @ x.T, x, beta=1.5, alpha=-0.5)
    return x
