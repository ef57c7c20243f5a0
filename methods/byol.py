"""BYOL: Grill et al. 2020, "Bootstrap your own latent", arXiv 2006.07733."""

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor, nn

from methods import Batch, Method, Momentum, View, methods


@methods.register("byol")
class BYOL(Method):
    """A student predicts the momentum network's projection of the other view.

    Loss: symmetric negative cosine similarity (equation 2, up to the constant 2). Heads d -> 2d -> 256 and
    256 -> 2d -> 256 and a constant momentum of 0.99, as in ReLA's public code. Views: appendix B.
    """

    recordable = True
    views = (View(blur=1.0), View(blur=0.1, solarise=0.2))

    def __init__(self, backbone: nn.Module, dim: int, projection: int = 256, momentum: float = 0.99) -> None:
        super().__init__(backbone, dim)
        self.projector = BYOLProjectionHead(dim, 2 * dim, projection)
        self.predictor = BYOLPredictionHead(projection, 2 * dim, projection)
        self.student = nn.Sequential(self.backbone, self.projector)
        self.teacher = Momentum(self.student, momentum)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, batch: Batch) -> Tensor:
        x0, x1 = batch.views
        p0, p1 = (self.predictor(self.student(x)).float() for x in (x0, x1))
        z1, z0 = (self.teacher(x).float() for x in (x1, x0))  # in this order its batch norms see them
        loss: Tensor = (self.criterion(p0, z1) + self.criterion(p1, z0)) / 2
        return loss
