"""SwAV: Caron et al. 2020, "Unsupervised learning by contrasting cluster assignments", arXiv 2006.09882."""

import torch
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.distributed import gather
from bench.views import View
from methods.base import Batch, Method, Queue, methods

VIEW = View(crop=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)


@methods.register("swav")
class SwAV(Method):
    """A view predicts to which prototypes the other view was assigned, equally over all prototypes.

    Loss: equations 1 and 2 at temperature 0.1, two views; assignments by three Sinkhorn iterations, epsilon 0.05
    (section 3.1). 3,000 prototypes; head d -> d -> 128 (appendix A). Each view has a queue of earlier projections to
    assign along with a small batch, used once it is full (section 4.2); 0: none. Views: appendix A.
    """

    views = (VIEW, VIEW)

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        projection: int = 128,
        prototypes: int = 3000,
        queue: int = 3840,
        temperature: float = 0.1,
        epsilon: float = 0.05,
    ) -> None:
        super().__init__(backbone, dim)
        self.projector = SwaVProjectionHead(dim, dim, projection)
        self.prototypes = nn.Linear(projection, prototypes, bias=False)
        self.queues = nn.ModuleList(Queue(queue, projection) for _ in self.views)
        self.criterion = SwaVLoss(temperature, sinkhorn_epsilon=epsilon)
        self.after_step()

    def loss(self, batch: Batch) -> Tensor:
        z = [gather(normalize(self.projector(self.backbone(view)).float())) for view in batch.views]
        queues = [queue for queue in self.queues if isinstance(queue, Queue)]
        queued = [self.prototypes(queue.rows) for queue in queues] if all(queue.full for queue in queues) else None
        loss: Tensor = self.criterion([self.prototypes(each).float() for each in z], [], queued)
        for queue, each in zip(queues, z, strict=True):
            queue.keep(each)
        return loss.squeeze()

    @torch.no_grad()
    def after_step(self) -> None:
        self.prototypes.weight.copy_(normalize(self.prototypes.weight))
        for queue in self.queues:
            assert isinstance(queue, Queue)
            queue.advance()
