"""iBOT: Zhou et al. 2022, "Image BERT pre-training with online tokenizer", arXiv 2111.07832."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods import Batch, Method, Momentum, View, gather, methods
from methods.dino import Head
from methods.tokens import encode_pair, mask_pair, transformer


@methods.register("ibot")
class IBOT(Method):
    """DINO, while the student also predicts the momentum network's distribution for the patches that it does not see.

    Loss: the cross-entropy between a view's features and the other view's, and that of masked patches and the same
    patches seen, each in the mean over both views. One head and, as in the public code, two centres. The settings are
    the public code's: 8,192 outputs, student temperature 0.1, teacher 0.04, centre momentum 0.9, momentum 0.996, views
    (without local ones). The head is that of DINO here.

    What differs: one of an image's two views has a block of 30 % of its patches masked, where the paper masks each view
    with probability 1/2 and 10 to 50 %; the centre is that of masked patches; the teacher's temperature is constant.
    """

    family = "masked"
    needs_tokens = True
    views = (View(crop=(0.14, 1.0), blur=1.0), View(crop=(0.14, 1.0), blur=0.1, solarise=0.2))
    centres: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        outputs: int = 8192,
        masked: float = 0.3,
        momentum: float = 0.996,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
    ) -> None:
        super().__init__(backbone, dim)
        self.student = nn.Sequential(self.backbone, Head(dim, hidden, bottleneck, outputs))
        self.teacher = Momentum(self.student, momentum)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.masked = masked
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.register_buffer("centres", torch.zeros(2, outputs))  # of features and of patches
        self.kept: Tensor | None = None  # what they move to after the step

    def loss(self, batch: Batch) -> Tensor:
        (network, head), (teacher, teacher_head) = self.student, self.teacher.module.children()
        places = mask_pair(transformer(network), batch.views[0], self.masked)
        sizes = [2 * len(places), places.numel()]
        with torch.no_grad():
            seen = encode_pair(transformer(teacher), batch.views, places)
            taught = teacher_head(torch.cat(seen)).float().split(sizes)
            self.kept = torch.stack([gather(each).mean(dim=0) for each in taught])
            features, patch = (
                ((each - centre) / self.teacher_temperature).softmax(dim=1)
                for each, centre in zip(taught, self.centres, strict=True)
            )
            features = features.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)  # each view's are the other one's target
        seen = encode_pair(transformer(network), batch.views, places, self.mask_token)
        guess = head(torch.cat(seen)).float()
        own, masked = (guess / self.student_temperature).split(sizes)
        return cross_entropy(own, features) + cross_entropy(masked, patch) / 2  # of two views one has no masked patch

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        if self.kept is not None:
            self.centres.lerp_(self.kept, 0.1)
            self.kept = None
