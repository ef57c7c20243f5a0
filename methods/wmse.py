"""W-MSE: Ermolov et al. 2021, "Whitening for self-supervised representation learning", arXiv 2007.06346."""

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from bench.core.errors import TrainingError, UserError
from methods import Batch, Method, View, gather, methods

VIEW = View(crop=(0.2, 1.0), saturation=0.4, grey=0.1)


@methods.register("wmse")
class WMSE(Method):
    """Two views agree after whitening, which spreads the projections so that they cannot collapse.

    Loss: the squared distance of whitened projections of length 1. A sub-batch is whitened by the inverse of the
    Cholesky factor of its own covariance, each view apart. Head d -> 1024 -> 64, sub-batches of twice as many images,
    and views as in the public code for CIFAR (for larger images: 128, and sub-batches of 256).

    The public code makes sub-batches of a random permutation; here a batch, which is in random order, is cut. It
    repeats that four times for larger images, and once, as here, for CIFAR.
    """

    recordable = True
    small_batches = False  # of fewer images than components there is no whitening
    views = (VIEW, VIEW)

    def __init__(
        self, backbone: nn.Module, dim: int, hidden: int = 1024, projection: int = 64, sub_batch: int = 128
    ) -> None:
        super().__init__(backbone, dim)
        if sub_batch <= projection:
            raise UserError(f"wmse: params.sub_batch {sub_batch} must be larger than params.projection {projection}")
        self.projector = ProjectionHead(
            [(dim, hidden, nn.BatchNorm1d(hidden), nn.ReLU()), (hidden, projection, None, None)]
        )
        self.sub_batch = sub_batch

    def loss(self, batch: Batch) -> Tensor:
        z = torch.stack([gather(self.projector(self.backbone(view)).float()) for view in batch.views])
        if z.shape[1] % self.sub_batch:
            raise TrainingError(
                f"wmse: protocol.batch_size {z.shape[1]} must be a multiple of params.sub_batch {self.sub_batch}"
            )
        with torch.autocast(z.device.type, enabled=False):
            w0, w1 = whitened(z.view(2, -1, self.sub_batch, z.shape[2]))
            return 2 - 2 * cosine_similarity(w0, w1, dim=-1).mean()


def whitened(z: Tensor) -> Tensor:
    """Return projections (..., n, p) whose covariance is the identity; NaN where those of z have no inverse."""
    centred = z - z.mean(dim=-2, keepdim=True)
    factor, failed = torch.linalg.cholesky_ex(centred.mT @ centred / (z.shape[-2] - 1))  # does not wait, as cholesky
    factor = factor.masked_fill(failed[..., None, None] > 0, torch.nan)
    white: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
    return white
