"""Training on the labels: the curve that self-supervised methods are held against."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods import Batch, Method, View, methods


@methods.register("supervised")
class Supervised(Method):
    """A linear classifier on the backbone learns the labels by cross-entropy.

    One view, cropped and flipped as in torchvision's reference training for ImageNet (He et al. 2015, arXiv
    1512.03385, section 3.4). `classes` may exceed those of the dataset: an output that no label has only shrinks.
    """

    recordable = True
    family = "labels"
    views = (View(jitter=0.0, grey=0.0),)

    def __init__(self, backbone: nn.Module, dim: int, classes: int = 1000) -> None:
        super().__init__(backbone, dim)
        self.classes = classes
        self.classifier = nn.Linear(dim, classes)

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.classifier(self.backbone(batch.views[0])), batch.labels)
