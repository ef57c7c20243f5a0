"""SAS: Joshi & Mirzasoleiman 2023, "Data-efficient contrastive self-supervised learning", arXiv 2302.09195."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.core.errors import UserError
from methods import Method, accelerators
from methods.parts import clusters
from methods.subset import Subset

PART = 512  # images whose similarities to the others of their class are there at a time


@accelerators.register("sas")
class SAS(Subset):
    """The method's own steps, as many, on batches of the images that are most similar to the rest of their class.

    Latent classes are clusters of the proxy's features. In each, F(S) = sum of s_ij over i outside S and j in S is
    maximised greedily, by as many images as the class has of the share; s_ij is the cosine of two features, at least 0.

    What differs: the proxy is the prior, and its target of the un-augmented image, reduced and standardised, stands for
    the expectation over augmentations, as one view does in the public code. As there, no pass of double greedy, which
    leaves fewer images, follows; there the greedy gain leaves out the similarities within S, too. No classes by CLIP.
    """

    needs_prior = True

    def __init__(self, method: Method, target_dim: int | None, share: float = 0.5, classes: int = 10) -> None:
        super().__init__(method, target_dim, share)
        if classes < 1:
            raise UserError(f"accelerate.classes is {classes}; make it 1 or more")
        self.latent = classes  # `classes` of a method are those of its labels

    def choose(self, count: int, targets: Tensor | None) -> Tensor:
        assert targets is not None
        sizes = (own := clusters(targets, self.latent)).bincount().cpu()
        ends = (self.share * sizes.cumsum(0) + 1e-9).long()  # so that the classes have the share together
        counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
        members = torch.split(own.argsort(stable=True), sizes.tolist())
        return torch.cat([each[central(targets[each], n)] for each, n in zip(members, counts, strict=True)])


def central(features: Tensor, count: int) -> Tensor:
    """Return the greedy maximiser of F among the sets of `count` of n features (n, k), indices int64 (count,)."""
    unit, chosen = normalize(features), torch.empty(count, dtype=torch.int64, device=features.device)
    gain = torch.cat([(part @ unit.T).clamp(min=0).sum(dim=1) for part in torch.split(unit, PART)])
    for step in range(count):  # the gains of all have a similarity of 1 to themselves in them, which decides nothing
        best = gain.argmax(dim=0, keepdim=True)
        chosen[step] = best[0]
        gain -= 2 * (unit @ unit.index_select(0, best).T).clamp(min=0).squeeze(1)  # j was outside, and is in S
        gain.index_fill_(0, best, -torch.inf)
    return chosen
