"""DCLW: Yeh et al. 2022, "Decoupled contrastive learning", arXiv 2110.06848."""

from torch import Tensor, nn

from methods import methods
from methods.dcl import DCL


@methods.register("dclw")
class DCLW(DCL):
    """DCL that weighs an image's positive term by how far its two views are apart.

    Loss: that of DCL with <z, z'> times w = 2 - exp(<z, z'> / sigma) / (mean of these over the batch), the negative von
    Mises-Fisher weight, with sigma = 0.5. The weights are constant for the gradient, as in lightly; the paper does not
    say. All else is DCL's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        projection: int = 128,
        temperature: float = 0.1,
        sigma: float = 0.5,
    ) -> None:
        super().__init__(backbone, dim, projection, temperature)
        self.sigma = sigma

    def weighted(self, similarity: Tensor) -> Tensor:
        weight = 2 - len(similarity) * (similarity.detach() / self.sigma).softmax(dim=0)
        return weight * similarity
