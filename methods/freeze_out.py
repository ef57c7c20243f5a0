"""FreezeOut: Brock et al. 2017, "Accelerate training by progressively freezing layers", arXiv 1706.04983."""

import math

import torch
from torch import Tensor, nn

from bench.core.errors import UserError
from methods import Around, Method, accelerators


@accelerators.register("freeze_out")
class FreezeOut(Around):
    """The first layers of the backbone are frozen one after the other, and from then on take no backward pass.

    Layer i of L learns until the share t_i = (first + (1 - first) i / (L - 1))^3 of the steps; at a share t its rate is
    the recipe's times (1 + cos(pi t / t_i)) / 2 (equation 1), over t_i if `scaled`. Heads have t_i = 1. The batch norms
    of a frozen layer use their running statistics, as in the public code, which has these defaults. Layers: the
    backbone's children in order, those of an `nn.Sequential` in its place; its own parameters belong to the first.

    What differs: a batch norm is a layer of its own; the recipe's schedule comes on top, and should be constant.
    Raises UserError unless `first` is above 0 and at most 1.
    """

    def __init__(self, method: Method, target_dim: int | None, first: float = 0.8, scaled: bool = True) -> None:
        if not 0 < first <= 1:
            raise UserError(f"freeze_out: accelerate.first is {first:g}; set it above 0 and to 1 at most")
        super().__init__(method, target_dim)
        blocks = (each if isinstance(each, nn.Sequential) else [each] for each in self.backbone.children())
        layers = [(x, nn.ParameterList(p for p in x.parameters() if p.requires_grad)) for each in blocks for x in each]
        layers = [(layer, weights) for layer, weights in layers if weights]
        for _, weights in layers[:1]:
            weights += [p for p in self.backbone.parameters(recurse=False) if p.requires_grad]
        ends = [(1 - (1 - first) * rest / max(1, len(layers) - 1)) ** 3 for rest in reversed(range(len(layers)))]
        self._layers = [(*layer, end) for layer, end in zip(layers, ends, strict=True)]
        self.scaled, self.at, self.frozen, self._before = scaled, 0.0, 0, list[list[Tensor]]()

    @property
    def kind(self) -> str:
        return f"{self.method.kind}, {self.frozen} layers frozen" if self.frozen else self.method.kind

    @property
    def rate(self) -> float:  # type: ignore[override]
        return (1 + math.cos(math.pi * self.at)) / 2 * self.method.rate

    def before_step(self, step: int, steps: int) -> None:
        super().before_step(step, steps)
        self.at, self.frozen = step / steps, sum(end * steps <= step for *_, end in self._layers)
        for index, (layer, weights, _) in enumerate(self._layers):
            layer.train(index >= self.frozen)
            weights.requires_grad_(index >= self.frozen)
        self._before = [[each.detach().clone() for each in weights] for _, weights, _ in self._layers[self.frozen :]]

    @torch.no_grad()
    def after_step(self) -> None:
        """Scale each layer's update, to which every optimiser's rate is a factor, from the heads' rate to its own."""
        for (_, weights, end), before in zip(self._layers[self.frozen :], self._before, strict=True):
            rate = (1 + math.cos(math.pi * self.at / end)) / (1 + math.cos(math.pi * self.at))
            torch._foreach_lerp_([*weights], before, 1 - (rate / end if self.scaled else rate))
        super().after_step()
