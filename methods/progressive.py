"""Koçyiğit et al. 2023, "Accelerating self-supervised learning via efficient training strategies", arXiv 2212.05611."""

import math
from dataclasses import replace

from bench.core.errors import UserError
from methods import Around, Method, View, accelerators

RISING = 0.3  # share of a cycle in which the rate rises


@accelerators.register("progressive")
class Progressive(Around):
    """Views grow to their full size within each cycle of the learning rate, and take fewer FLOPs until then.

    A cycle has `levels` equally long parts, whose views' sides are `smallest`, ..., 1 of the full ones, equally far
    apart; the last part of each cycle, and so of the training, is at full size. The rate rises in a straight line from
    0 to the recipe's over the first 0.3 of a cycle, and falls to 0 by half a cosine over the rest. A step is where its
    middle is.

    What differs: the paper's augmentations grow with the resolution, and it mines hard positives; neither is here.
    All numbers, the equal cycles and the curve of the rate are ours. The recipe's own schedule comes on top, and should
    be constant.

    Args:
        cycles: how many there are, 1 or more.
        levels: of resolution in a cycle, 2 or more. Each change begins new batches, and on a GPU a new recording.
        smallest: side of the first level's views, as a share of the full one. A side is rounded to a multiple of 4
            pixels, and must be one of a vision transformer's patch: for 224 pixels in patches of 16, 2 or 8 levels.

    Raises UserError on other numbers.
    """

    def __init__(
        self, method: Method, target_dim: int | None, cycles: int = 2, levels: int = 3, smallest: float = 0.5
    ) -> None:
        if cycles < 1 or levels < 2 or not 0 < smallest < 1:
            raise UserError("progressive: set accelerate.cycles to 1, levels to 2 or more, smallest between 0 and 1")
        super().__init__(method, target_dim)
        self.cycles, self.levels, self.smallest = cycles, levels, smallest
        self.share, self.cyclic = 1.0, 1.0  # of the full side, and of the rate, in the next step

    @property
    def views(self) -> tuple[View, ...]:  # type: ignore[override]
        return tuple(replace(view, size=view.size * self.share) for view in self.method.views)

    @property
    def kind(self) -> str:
        return self.method.kind if self.share == 1 else f"{self.method.kind} at {self.share:.3g} of the size"

    @property
    def rate(self) -> float:  # type: ignore[override]
        return self.cyclic * self.method.rate

    def before_step(self, step: int, steps: int) -> None:
        super().before_step(step, steps)
        at = (step + 0.5) * self.cycles / steps % 1
        self.share = 1 - (1 - self.smallest) * (1 - int(at * self.levels) / (self.levels - 1))
        self.cyclic = at / RISING if at < RISING else (1 + math.cos(math.pi * (at - RISING) / (1 - RISING))) / 2
