"""DINOv2: Oquab et al. 2023, "Learning robust visual features without supervision", arXiv 2304.07193."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pairwise_distance

from methods import Batch, Method, Momentum, View, gather, methods
from methods.dino import Head
from methods.parts import balanced
from methods.tokens import encode_pair, mask_pair, transformer

LOCAL = View(crop=(0.05, 0.32), blur=0.5, size=96 / 224)


@methods.register("dinov2")
class DINOv2(Method):
    """DINO over global and local views and iBOT's masked patches, by two heads, while features spread over the sphere.

    Loss (section 4): the cross-entropy of each view's features to those of the other global views; that of masked
    patches, in the mean over both global views; and 0.1 KoLeo of each global view's features, over the batch of all
    processes. Teachers are balanced over outputs by three Sinkhorn iterations. The settings are the public code's for
    ViT-L: 65,536 outputs, student temperature 0.1, teacher 0.07 (after its warm-up), momentum 0.992, views. The heads
    are that of DINO here.

    What differs: masks are those of iBOT here. Left out are the schedules, the rates by layer, a frozen last layer in
    the first epoch, stochastic depth, and the last steps at a high resolution.
    """

    family = "masked"
    needs_tokens = True
    views = (View(crop=(0.32, 1.0), blur=1.0), View(crop=(0.32, 1.0), blur=0.1, solarise=0.2), *[LOCAL] * 8)

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        outputs: int = 65536,
        masked: float = 0.3,
        koleo: float = 0.1,
        momentum: float = 0.992,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
    ) -> None:
        super().__init__(backbone, dim)
        heads = [Head(dim, hidden, bottleneck, outputs) for _ in range(2)]
        self.student = nn.Sequential(self.backbone, *heads)
        self.teacher = Momentum(self.student, momentum)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.masked, self.koleo = masked, koleo
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature

    def loss(self, batch: Batch) -> Tensor:
        large, small = batch.views[:2], batch.views[2:]
        network, head, patch_head = self.student
        places = mask_pair(transformer(network), large[0], self.masked)
        wanted, wanted_patch = self._taught(large, places)
        features, masked = encode_pair(transformer(network), large, places, self.mask_token)
        scores = head(torch.cat([features, network(torch.cat(small))])).float() / self.student_temperature
        own, local = scores.log_softmax(dim=1).split([len(features), len(small) * len(places)])
        local = local.unflatten(0, (len(small), -1)).sum(dim=0)
        agreed: Tensor = (own.unflatten(0, (-1, 2)) * wanted.flip(1)).sum() + (local * wanted.sum(dim=1)).sum()
        dino = -agreed / (len(features) * (1 + len(small)))  # the mean over images and pairs of views
        ibot = cross_entropy(patch_head(masked).float() / self.student_temperature, wanted_patch) / 2
        crowd = crowding(features[::2]) + crowding(features[1::2])
        return dino + ibot + self.koleo * crowd

    @torch.no_grad()
    def _taught(self, views: list[Tensor], places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's distributions for both views (B, 2, outputs) and for the patches (B m, outputs)."""
        network, *heads = self.teacher.module.children()
        rows = encode_pair(transformer(network), views, places)
        scores = [head(each).float() for head, each in zip(heads, rows, strict=True)]
        features, patch = (balanced(each, self.teacher_temperature) for each in scores)
        return features.view(-1, 2, features.shape[1]), patch


def crowding(features: Tensor) -> Tensor:
    """Return KoLeo of features (B, d): minus the mean logarithm of the distance to the nearest of the other images."""
    rows = gather(normalize(features.float()))
    with torch.no_grad():
        nearest = (rows @ rows.T).fill_diagonal_(-1).argmax(dim=1)
    return -(pairwise_distance(rows, rows.index_select(0, nearest), eps=1e-8) + 1e-8).log().mean()
