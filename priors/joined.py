"""Priors made of others: one whose features are the output of a module, and several side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from bench.core.errors import UserError, did_you_mean
from bench.data import image_size
from bench.grid.controls import PriorChoice
from priors.base import Prior


def as_chosen(prior: Prior, choice: PriorChoice) -> Prior:
    """Return a prior that sees images of the size, and has the features of the layer, that an arm chooses."""
    prior.input_size = choice.input_size or prior.input_size
    return AtLayer(prior, choice.layer) if choice.layer else prior


class AtLayer(Prior):
    """Another prior, whose features are the output of a module of its network.

    Maps (B, C, H, W) are averaged over H and W, tokens (B, n, d) over n. All of the network runs, and is charged.

    Args:
        prior: the other one.
        layer: the module's name, such as `layer3` or `blocks.5`.
    """

    def __init__(self, prior: Prior, layer: str) -> None:
        super().__init__(prior.argument, prior.cell, prior.paths)
        self.prior, self.layer = prior, layer
        self.input_size, self.mean, self.std = prior.input_size, prior.mean, prior.std

    def model(self) -> nn.Module:
        return self._cut(self.prior.model())

    def untrained(self) -> nn.Module:
        return self._cut(self.prior.untrained())

    def digest(self) -> str:
        return f"{self.prior.digest()} at {self.layer}"

    def fetch(self) -> None:
        self.prior.fetch()

    def _cut(self, network: nn.Module) -> nn.Module:
        key, names = f"{self.cell.targets_key}.layer", [name for name, _ in network.named_modules() if name]
        if self.layer not in names:
            raise UserError(f"{key}: the prior's network has no module {self.layer!r}{did_you_mean(self.layer, names)}")
        return _Cut(network, self.layer, key)


class _Cut(nn.Module):
    """A network whose output is that of one of its modules. Raises UserError where that is none of images."""

    def __init__(self, network: nn.Module, layer: str, key: str) -> None:
        super().__init__()
        self.network, self.layer, self.key = network, layer, key
        self.output: object = None
        network.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, given: object, output: object) -> None:
        self.output = output

    def forward(self, images: Tensor) -> Tensor:
        self.network(images)
        output, self.output = self.output, None
        if not isinstance(output, Tensor) or output.ndim not in {2, 3, 4} or len(output) != len(images):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            wanted = "(B, d), (B, n, d) or (B, C, H, W)"
            raise UserError(f"{self.key}: the output of module {self.layer!r} is {shape}, not {wanted}; name another")
        return output.mean(dim=(2, 3)) if output.ndim == 4 else output.mean(dim=1) if output.ndim == 3 else output


class Joined(Prior):
    """Several priors, whose features (B, p) stand side by side, those of each divided by their length.

    Each sees images of its own size, made of those of the largest one, and normalised as it expects them.
    """

    def __init__(self, members: Sequence[Prior]) -> None:
        first = members[0]
        super().__init__(first.argument, first.cell, first.paths)
        self.members, self.mean, self.std = members, first.mean, first.std
        self.sizes = [each.input_size or image_size(first.cell, first.paths) for each in members]
        self.input_size = max(self.sizes)

    def model(self) -> nn.Module:
        return self._joined([each.model() for each in self.members])

    def untrained(self) -> nn.Module:
        return self._joined([each.untrained() for each in self.members])

    def digest(self) -> str:
        return " + ".join(f"{each.digest()} at {size}" for each, size in zip(self.members, self.sizes, strict=True))

    def fetch(self) -> None:
        for each in self.members:
            each.fetch()

    def _joined(self, networks: Sequence[nn.Module]) -> nn.Module:
        seen = [_Seen(*each, self) for each in zip(networks, self.members, self.sizes, strict=True)]
        return _Joined(seen)


class _Seen(nn.Module):
    """A member's network, which is shown the images of all as it expects them."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, member: Prior, size: int, joined: Joined) -> None:
        super().__init__()
        mean, std, own_mean, own_std = map(torch.tensor, (joined.mean, joined.std, member.mean, member.std))
        self.network, self.size = network, size
        self.register_buffer("scale", (std / own_std)[:, None, None])
        self.register_buffer("shift", ((mean - own_mean) / own_std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.size:
            images = interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        features: Tensor = self.network(images * self.scale + self.shift)
        return normalize(features.flatten(1).float())


class _Joined(nn.Module):
    """Networks whose features stand side by side."""

    def __init__(self, seen: Sequence[_Seen]) -> None:
        super().__init__()
        self.seen = nn.ModuleList(seen)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([each(images) for each in self.seen], dim=1)
