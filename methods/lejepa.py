"""LeJEPA: Balestriero and LeCun 2025, "Provable and scalable self-supervised learning", arXiv 2511.08544."""

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.data.resample import send
from methods import Batch, Method, View, gather, methods

GLOBAL = View(crop=(0.3, 1.0), blur=0.5, solarise=0.2)
LOCAL = View(crop=(0.05, 0.3), blur=0.5, solarise=0.2, size=98 / 224)


@methods.register("lejepa")
class LeJEPA(Method):
    """Views come together while the batch's embeddings are an isotropic Gaussian's: no teacher, no stop-gradient.

    Loss: 0.95 times the mean squared distance of all views' embeddings from the mean of the image's global views, and
    0.05 times SIGReg: the Epps-Pulley statistic of each view's embeddings along 1,024 directions, drawn in each step.
    It is N times the integral of the squared distance between the characteristic functions, weighted by the Gaussian's,
    by the trapezoidal rule at 17 points of 0 to 3, and doubled (the public code's). Head d -> 2048 -> 2048 -> 128 with
    batch norm, two global views and six local ones, and their law are those of the public code, too.
    """

    family = "predictive"
    views = (GLOBAL, GLOBAL, *[LOCAL] * 6)

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 2048,
        projection: int = 128,
        directions: int = 1024,
        weight: float = 0.05,
    ) -> None:
        super().__init__(backbone, dim)
        self.projector = ProjectionHead(
            [
                (dim, hidden, nn.BatchNorm1d(hidden), nn.ReLU()),
                (hidden, hidden, nn.BatchNorm1d(hidden), nn.ReLU()),
                (hidden, projection, None, None),
            ]
        )
        self.directions, self.weight = directions, weight

    def loss(self, batch: Batch) -> Tensor:
        features = [self.backbone(torch.cat(views)) for views in (batch.views[:2], batch.views[2:])]
        projected: Tensor = self.projector(torch.cat(features))
        embedded = projected.float().view(len(batch.views), -1, projected.shape[1])
        with torch.autocast(embedded.device.type, enabled=False):
            distance = (embedded - embedded[:2].mean(dim=0)).square().mean()
            spread = gaussianity(gather(embedded.transpose(0, 1).contiguous()), self.directions)
            return (1 - self.weight) * distance + self.weight * spread


def gaussianity(z: Tensor, directions: int) -> Tensor:
    """Return SIGReg of embeddings (N, V, k), in the mean over V views: the same directions in all processes."""
    drawn = send(torch.randn(z.shape[2], directions), z.device).to(z.dtype)
    points = torch.linspace(0, 3, 17, device=z.device, dtype=z.dtype)
    angles = (z @ normalize(drawn, dim=0))[..., None] * points
    gaussian = (-points.square() / 2).exp()
    distance = (angles.cos().mean(dim=0) - gaussian).square() + angles.sin().mean(dim=0).square()
    return 2 * len(z) * torch.trapezoid(distance * gaussian, points).mean()
