"""ReLA-F: Sun et al. 2024, "Efficiency for Free", arXiv 2405.14669: targets first, then the method itself."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from bench.core.distributed import mean
from methods import Batch, Method, View

FAST, SLOW, THRESHOLD = 0.001, 0.01, 0.995
VIEW = View(crop=(0.5, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)


class AdaptiveSwitch(nn.Module):
    """Says when the loss on the targets has stopped falling.

    fast <- 0.999 fast + 0.001 L, slow <- 0.99 slow + 0.01 fast, from fast = 1 and slow = 2; over, for good, once
    rho = exp(-max(slow - fast, 0)) >= 0.995: at a constant loss of 1, 0.98 and 0.95 after 527, 556 and 616 steps.
    All of it stays on the device: nothing waits for a loss. (The public code looks at rho before it adds the step's
    loss and so switches one step later than this definition.)
    """

    fast: Tensor
    slow: Tensor
    over: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fast", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("slow", torch.tensor(2.0, dtype=torch.float64))
        self.register_buffer("over", torch.tensor(False))

    def update(self, loss: Tensor) -> None:
        """Add the loss of a step, a scalar."""
        self.fast.lerp_(loss.detach().double(), FAST)
        self.slow.lerp_(self.fast, SLOW)
        rho = torch.exp(-(self.slow - self.fast).clamp(min=0))
        self.over |= rho >= THRESHOLD


class ReLA(Method):
    """A wrapper around any method: while the ReLA phase lasts, a step regresses a prior's targets.

    Loss of the phase: the mean over two views of 1 - cos(W h(x) + b, y) with y the image's target and h the
    backbone; W and b stay at their random initial values, as in the public code, unless `train_map`. The method's
    `after_step` runs in both phases, so a momentum network follows the backbone from the start.

    Args:
        method: the method to accelerate.
        target_dim: the dimension k of the targets.
        phase_steps: length of a constant phase; None: the adaptive switch decides.
        train_map: also train the linear map.
        check_every: steps between two looks at the adaptive switch, each of which waits for the device.
        then: "cosine": after the phase, a cosine takes the rate from the recipe's to 0 at the cell's end.
    """

    def __init__(
        self,
        method: Method,
        target_dim: int,
        phase_steps: int | None = None,
        train_map: bool = False,
        check_every: int = 1,
        then: Literal["cosine"] | None = None,
    ) -> None:
        super().__init__(method.backbone, method.dim)
        self.method = method
        self.map = nn.Linear(method.dim, target_dim).requires_grad_(train_map)
        self.switch = AdaptiveSwitch()
        self.phase_steps = phase_steps
        self.check_every = check_every
        self.then, self.falling = then, 1.0
        self.steps = 0
        self.switch_step = 0 if phase_steps == 0 else None

    @property
    def in_phase(self) -> bool:
        """Whether the ReLA phase lasts."""
        return self.switch_step is None

    @property
    def views(self) -> tuple[View, ...]:  # type: ignore[override]
        """ReLA's own two views while its phase lasts, then the method's."""
        return (VIEW, VIEW) if self.in_phase else self.method.views

    @property
    def kind(self) -> str:
        return "rela" if self.in_phase else self.method.kind

    @property
    def wants_targets(self) -> bool:
        return self.in_phase

    @property
    def leaves_unused(self) -> bool:
        """In the phase the method's heads; after it the map, where it was trained."""
        return self.in_phase or self.map.weight.requires_grad

    @property
    def recordable(self) -> bool:
        return self.in_phase or self.method.recordable

    @property
    def rate(self) -> float:  # type: ignore[override]
        return self.falling * self.method.rate

    def before_step(self, step: int, steps: int) -> None:
        self.method.before_step(step, steps)
        if self.then and self.switch_step is not None:
            over = self.switch_step
            self.falling = (1 + math.cos(math.pi * (step - over) / (steps - over))) / 2

    def loss(self, batch: Batch) -> Tensor:
        if not self.in_phase:
            return self.method.loss(batch)
        assert batch.targets is not None
        x0, x1 = batch.views
        y0, y1 = self.map(self.backbone(x0)).float(), self.map(self.backbone(x1)).float()
        loss = 1 - (cosine_similarity(y0, batch.targets) + cosine_similarity(y1, batch.targets)).mean() / 2
        self.switch.update(mean(loss))
        return loss

    def after_step(self) -> None:
        self.method.after_step()
        self.steps += 1
        if not self.in_phase:
            return
        if self.phase_steps is not None:
            over = self.steps >= self.phase_steps
        else:
            over = self.steps % self.check_every == 0 and bool(self.switch.over)
        if over:
            self.switch_step = self.steps

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps, "switch_step": -1 if self.switch_step is None else self.switch_step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]
        self.switch_step = None if state["switch_step"] < 0 else state["switch_step"]
