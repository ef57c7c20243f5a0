"""The backbone of a cell that begins with the weights of a prior."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.core.seeds import generator
from bench.data.augment import MEAN, STD, normalise
from bench.models.backbones import Backbone, initial_backbone
from bench.plan.graph import Ready
from priors import Prior


class Renormalised(nn.Module):
    """A network behind what turns images in our normalisation into images in its own.

    Folded into its first layer this would not be exact: a convolution pads with zeros, in its own normalisation.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        ours, own = (torch.tensor(pair, dtype=torch.float64)[:, :, None, None] for pair in ((MEAN, STD), (mean, std)))
        self.register_buffer("scale", (ours[1] / own[1]).float())
        self.register_buffer("shift", ((ours[0] - own[0]) / own[1]).float())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images * self.scale + self.shift)
        return features


def starting_backbone(task: Ready, size: int, rehearsal: bool = False) -> Backbone | None:
    """Return the backbone with the weights of the task's starting prior, None where it has none.

    Its features are the prior's. Raises UserError when they are not: names and shapes do not tell all of a network.
    """
    if task.start is None:
        return None
    prior, backbone = task.start, initial_backbone(task.cell.backbone, size, task.cell.seed)
    network = prior.untrained() if rehearsal else prior.model()
    backbone.module.load_state_dict(network.state_dict())
    if (prior.mean, prior.std) != (MEAN, STD):
        backbone = Backbone(Renormalised(backbone.module, prior.mean, prior.std), backbone.dim)
    if not _same_features(backbone.module, network, prior, size):
        raise UserError(
            f"arm {task.cell.arm!r}: backbone {task.cell.backbone!r} has the weights of warm_start"
            f" {task.cell.warm_start!r} but not its features; choose the prior's own architecture"
        )
    return backbone


@torch.no_grad()
def _same_features(own: nn.Module, network: nn.Module, prior: Prior, size: int) -> bool:
    """Return whether both make the same features of a random image, each in its own normalisation."""
    image = torch.rand(1, 3, size, size, generator=generator(0, "warm start"))
    ours = own.eval()(normalise(image))
    theirs = network.eval()(normalise(image, prior.mean, prior.std)).flatten(1)
    return bool(ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max()))
