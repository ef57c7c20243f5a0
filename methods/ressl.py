"""ReSSL: Zheng et al. 2021, "Relational self-supervised learning with weak augmentation", arXiv 2107.09282."""

from lightly.models.modules import MoCoProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from methods import Batch, Method, Momentum, Queue, View, gather, methods
from methods.moco import VIEW


@methods.register("ressl")
class ReSSL(Method):
    """A strong view's similarities to earlier images are to be those of a weak view, which a momentum network sees.

    Loss: the cross-entropy between two softmaxes over a queue of the momentum network's projections, the student's at
    temperature 0.1 and the momentum network's at 0.04. All else is the public code's: a queue of 131,072, momentum
    0.999, head d -> 4096 -> 512 without batch norm. The strong view is MoCo v2's, the weak one cropped and flipped.
    """

    recordable = True
    views = (VIEW, View(crop=(0.2, 1.0), jitter=0.0, grey=0.0))

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 4096,
        projection: int = 512,
        queue: int = 131072,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        momentum: float = 0.999,
    ) -> None:
        super().__init__(backbone, dim)
        self.student = nn.Sequential(self.backbone, MoCoProjectionHead(dim, hidden, projection))
        self.teacher = Momentum(self.student, momentum)
        self.queue = Queue(queue, projection)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature

    def loss(self, batch: Batch) -> Tensor:
        strong, weak = batch.views
        query, key = normalize(self.student(strong).float()), normalize(self.teacher(weak).float())
        relation = (key @ self.queue.rows.T / self.teacher_temperature).softmax(dim=1)
        self.queue.keep(gather(key))
        return cross_entropy(query @ self.queue.rows.T / self.student_temperature, relation)
