"""Random weights in place of a prior's, for a rehearsal."""

import torch
from torch import nn

from priors.base import Prior


class Untrained(Prior):
    """Another prior's network with random weights, which looks at two images: a rehearsal needs no more."""

    def __init__(self, prior: Prior, name: str) -> None:
        super().__init__(name, prior.cell, prior.paths)
        self.prior, self.input_size, self.mean, self.std = prior, prior.input_size, prior.mean, prior.std

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _Sparing(self.prior.untrained())

    def untrained(self) -> nn.Module:
        return self.prior.untrained()

    def digest(self) -> str:
        return f"untrained {self.argument}"


class _Sparing(nn.Module):
    """A network that sees the first two images of a batch; the others are given the features of these."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(images[:2])
        return features[torch.arange(len(images), device=features.device) % len(features)]
