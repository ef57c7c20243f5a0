"""A random network as a prior."""

from torch import nn

from bench.data import image_size
from bench.models.backbones import initial_backbone
from priors.base import Prior, priors


@priors.register("rand")
class Rand(Prior):
    """A random network of the trained architecture (the paper's `Rand.`).

    The trained network's own initial weights, as in the public code, and so another network for every seed.
    """

    def digest(self) -> str:
        return f"rand-{self.cell.backbone}-{self.cell.seed}"

    def model(self) -> nn.Module:
        size = self.input_size or image_size(self.cell, self.paths)
        return initial_backbone(self.cell.backbone, size, self.cell.seed).module
