"""SimSiam: Chen and He 2021, "Exploring simple siamese representation learning", arXiv 2011.10566."""

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn

from methods import Batch, Method, methods
from methods.moco import MoCo


@methods.register("simsiam")
class SimSiam(Method):
    """BYOL without a momentum network: the other view's projection is a constant.

    Loss: symmetric negative cosine similarity with stop-gradient (equation 4). Heads d -> d -> d -> 2048 and
    2048 -> 512 -> 2048 (section 3). Views: those of MoCo v2 (section 3).
    """

    recordable = True
    views = MoCo.views

    def __init__(self, backbone: nn.Module, dim: int, projection: int = 2048, bottleneck: int = 512) -> None:
        super().__init__(backbone, dim)
        self.projector = SimSiamProjectionHead(dim, dim, projection)
        self.predictor = SimSiamPredictionHead(projection, bottleneck, projection)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, batch: Batch) -> Tensor:
        z0, z1 = (self.projector(self.backbone(view)) for view in batch.views)
        p0, p1 = self.predictor(z0).float(), self.predictor(z1).float()
        loss: Tensor = (self.criterion(p0, z1.detach().float()) + self.criterion(p1, z0.detach().float())) / 2
        return loss
