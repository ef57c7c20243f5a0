"""SwAV: Caron et al. 2020, "Unsupervised learning by contrasting cluster assignments", arXiv 2006.09882."""

from typing import cast

import torch
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead
from torch import Tensor, nn
from torch.nn.functional import normalize

from methods import Batch, Method, Queue, View, gather, methods
from methods.parts import of_each

VIEW = View(crop=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)


IMAGENET = 1_281_167  # images


@methods.register("swav")
class SwAV(Method):
    """A view predicts the other view's prototype assignment; assignments are balanced over all prototypes.

    Loss: equations 1 and 2 at temperature 0.1, two views; assignments by three Sinkhorn iterations, epsilon 0.05
    (section 3.1). 3,000 prototypes; head d -> d -> 128 (appendix A). Each view has a queue of earlier projections to
    assign along with a small batch (section 4.2); 0: none. As in the public code for small batches it is used after as
    many images as 15 epochs of ImageNet have, when it is full: earlier, its rows are out of date too soon. The public
    code freezes the prototypes for one epoch; here they are trained from the first step. Views: appendix A.

    A loss that stays at ln(prototypes) is that of equal assignments: SwAV has collapsed. The public code then advises
    an epsilon of 0.03.
    """

    version = 2
    recordable = True
    views: tuple[View, ...] = (VIEW, VIEW)

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        projection: int = 128,
        prototypes: int = 3000,
        queue: int = 3840,
        queue_after: int = 15 * IMAGENET,
        temperature: float = 0.1,
        epsilon: float = 0.05,
    ) -> None:
        super().__init__(backbone, dim)
        self.projector = SwaVProjectionHead(dim, dim, projection)
        self.prototypes = nn.Linear(projection, prototypes, bias=False)
        self.queues = nn.ModuleList(Queue(queue, projection, queue_after) for _ in self.views[:2])
        self.criterion = SwaVLoss(temperature, sinkhorn_epsilon=epsilon)
        self.after_step()

    @property
    def kind(self) -> str:
        """A step that assigns the queue's rows too has more to compute."""
        return "queue" if all(queue.ready for queue in self._queues()) else "method"

    def loss(self, batch: Batch) -> Tensor:
        projected = of_each(lambda view: self.projector(self.backbone(view)), batch.views)
        z = [gather(normalize(each.float())) for each in projected]
        queued = [self.prototypes(queue.rows) for queue in self._queues()] if self.kind == "queue" else None
        scores = [self.prototypes(each).float() for each in z]
        loss: Tensor = self.criterion(scores[:2], scores[2:], queued)  # none but the global views are assigned
        for queue, each in zip(self._queues(), z[:2], strict=True):
            queue.keep(each)
        return loss.squeeze()

    @torch.no_grad()
    def after_step(self) -> None:
        self.prototypes.weight.copy_(normalize(self.prototypes.weight))
        for queue in self._queues():
            queue.advance()

    def _queues(self) -> list[Queue]:
        return cast(list[Queue], list(self.queues))
