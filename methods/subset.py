"""A random part of the images: what an accelerator that chooses its images has to beat."""

import torch
from torch import Tensor

from bench.core.errors import UserError
from bench.data.sampler import images_per_epoch
from methods import Around, Method, accelerators


@accelerators.register("subset")
class Subset(Around):
    """The method's own steps, as many, on batches of a random share of the images, the same ones in every epoch.

    What differs: it is no one's method, but the control of those that choose (`herding`, `sas`), which derive from it.

    Args:
        share: of the images, above 0 and at most 1. Raises UserError on another one.
    """

    def __init__(self, method: Method, target_dim: int | None, share: float = 0.5) -> None:
        super().__init__(method, target_dim)
        if not 0 < share <= 1:
            raise UserError(f"accelerate.share is {share:g}; make it more than 0 and at most 1")
        self.share = share

    def choose(self, count: int, targets: Tensor | None) -> Tensor:
        return torch.randperm(count)[: images_per_epoch(count, self.share)]
