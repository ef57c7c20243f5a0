"""Herding: Welling 2009, "Herding dynamical weights to learn"; greedily as in iCaRL, arXiv 1611.07725, algorithm 4."""

import torch
from torch import Tensor

from bench.data.sampler import images_per_epoch
from methods import accelerators
from methods.subset import Subset


@accelerators.register("herding")
class Herding(Subset):
    """The method's own steps, as many, on batches of the images whose targets have nearly the mean of all.

    Image k is the one, of those not chosen yet, that brings the mean of the k chosen targets nearest to the mean of all
    targets.

    What differs: iCaRL chooses exemplars of each class, by features of length 1 of the network that is trained. Here
    no class is known, and t is ReLA's target, which is reduced to k components and standardised.
    """

    needs_prior = True

    def choose(self, count: int, targets: Tensor | None) -> Tensor:
        assert targets is not None
        chosen = torch.empty(images_per_epoch(count, self.share), dtype=torch.int64, device=targets.device)
        mean, lacking = targets.mean(dim=0, keepdim=True), torch.zeros_like(targets[:1])
        squares = targets.square().sum(dim=1, keepdim=True)
        for step in range(len(chosen)):
            lacking += mean  # k times the mean, less the sum of the k - 1 chosen targets
            nearest = torch.addmm(squares, targets, lacking.T, alpha=-2).argmin(dim=0)  # |lacking - t|^2 - |lacking|^2
            chosen[step] = nearest[0]
            lacking -= targets.index_select(0, nearest)
            squares.index_fill_(0, nearest, torch.inf)
        return chosen
