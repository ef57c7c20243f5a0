"""DINO: Caron et al. 2021, "Emerging properties in self-supervised vision transformers", arXiv 2104.14294."""

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrizations import weight_norm

from bench.core.distributed import mean
from methods import Batch, Method, Momentum, View, methods
from methods.parts import of_each

MOMENTUM = 0.9  # of the centre


@methods.register("dino")
class DINO(Method):
    """A student predicts the momentum network's sharpened, centred distribution over outputs for the other view.

    Loss: equation 2 over two global views, student temperature 0.1, teacher 0.04, centre momentum 0.9 (section 3.1).
    As in ReLA's public code there are no local views, the head is d -> 2048 -> 256 -> 2048 with batch norm after its
    first layer and torch's initial weights, and the momentum is 0.99 throughout. Views: BYOL's, cropped to 0.4 of the
    area or more (DINO's public code).
    """

    version = 2
    recordable = True
    views: tuple[View, ...] = (View(crop=(0.4, 1.0), blur=1.0), View(crop=(0.4, 1.0), blur=0.1, solarise=0.2))

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        outputs: int = 2048,
        momentum: float = 0.99,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
    ) -> None:
        super().__init__(backbone, dim)
        self.student = nn.Sequential(self.backbone, Head(dim, hidden, bottleneck, outputs))
        self.teacher = Momentum(self.student, momentum)
        self.criterion = Centred(outputs, teacher_temperature, student_temperature)

    def loss(self, batch: Batch) -> Tensor:
        teacher = torch.stack([self.teacher(view).float() for view in batch.views[:2]])  # the global ones
        student = torch.stack([each.float() for each in of_each(self.student, batch.views)])
        loss: Tensor = self.criterion(teacher, student)
        return loss

    def after_step(self) -> None:
        super().after_step()
        self.criterion.move()


class Centred(nn.Module):
    """Cross-entropy of the student's outputs (V, B, K) to the teacher's (T, B, K) for other views, centred.

    (lightly's `DINOLoss` puts the centre into new memory in each step, where no CUDA graph would look for it.)
    """

    center: Tensor
    latest: Tensor  # mean of the teacher's outputs; zeros, as the centre, while no step has called this loss

    def __init__(self, outputs: int, teacher_temperature: float, student_temperature: float) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1, 1, outputs))
        self.register_buffer("latest", torch.zeros(outputs), persistent=False)
        self.temperatures = teacher_temperature, student_temperature

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the mean over pairs and images, the first T views being the teacher's; keep its mean for `move`."""
        sharp, soft = self.temperatures
        wanted = ((teacher - self.center) / sharp).softmax(dim=-1)
        losses = -torch.einsum("tbk,sbk->ts", wanted, (student / soft).log_softmax(dim=-1))
        losses.fill_diagonal_(0)
        self.latest.copy_(mean(teacher.mean(dim=(0, 1))))
        return losses.sum() / ((losses.numel() - len(losses)) * teacher.shape[1])

    def move(self) -> None:
        """Move the centre towards the latest mean: 0.9 c + 0.1 m."""
        self.center.mul_(MOMENTUM).add_(self.latest * (1 - MOMENTUM))


class Head(nn.Sequential):
    """Scores features against prototypes of length 1: two layers, rows scaled to length 1, and the prototypes.

    (lightly's `DINOProjectionHead` has three layers, and a weight norm that torch has deprecated.)
    """

    def __init__(self, dim: int, hidden: int, bottleneck: int, outputs: int) -> None:
        mlp = ProjectionHead([(dim, hidden, nn.BatchNorm1d(hidden), nn.GELU()), (hidden, bottleneck, None, None)])
        last = weight_norm(nn.Linear(bottleneck, outputs, bias=False))
        with torch.no_grad():  # the length stays 1
            last.parametrizations.weight.original0.fill_(1).requires_grad_(False)
        super().__init__(mlp, Unit(), last)


class Unit(nn.Module):
    """Scales each row to length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, dim=1)
