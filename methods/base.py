"""The contract of a method."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from bench.data.augment import View
from methods.parts import Momentum, Queue


@dataclass(frozen=True)
class Batch:
    """What a step sees of B images."""

    views: list[Tensor]  # one float tensor (B, 3, pixels, pixels) for each of the method's views, normalised
    labels: Tensor  # int64 (B,); a self-supervised method does not look
    targets: Tensor | None = None  # float32 (B, k), there when the method `wants_targets`


class Method(nn.Module):
    """A self-supervised algorithm around a backbone.

    A subclass sets `views` and writes `loss`; a momentum network or a queue among its attributes moves after each
    step, and what else keeps moving does so in `after_step`. The harness optimises every parameter that requires a
    gradient and saves every parameter and buffer, so a frozen parameter is declared by `requires_grad_(False)` and all
    other state is a buffer. Raise `version` whenever the code changes what is learned: it is part of a cell's identity.

    `before_step`, and what follows `after_step` here, are for a method whose steps are not all alike.

    Args:
        backbone: maps (B, 3, size, size) to features (B, dim).
        dim: the dimension d of the features.
        Further arguments of a subclass, with defaults, are what a grid can set under `params`.
    """

    version: ClassVar[int] = 1
    family: ClassVar[str] = "joint embedding"  # under which `list methods` has it
    needs_tokens: ClassVar[bool] = False  # whether the backbone must be a vision transformer: see methods/tokens.py
    class_token: ClassVar[bool] = True  # whether that one's features may be its class token
    small_batches: ClassVar[bool] = True  # whether a few images are enough for a step
    views: tuple[View, ...]

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim = dim

    def loss(self, batch: Batch) -> Tensor:
        """Return the scalar loss of a batch."""
        raise NotImplementedError(f"{type(self).__name__} has no method `loss`")

    def before_step(self, step: int, steps: int) -> None:
        """Prepare step `step`, from 0, of the cell's `steps`: what follows here, `views` and more may go by it.

        It may be asked twice of a step, once of a copy, and what it computes is charged to the step.
        """

    def after_step(self) -> None:
        """Act after the optimiser's step: the method's own momentum networks and queues move."""
        for part in self.children():
            if isinstance(part, Momentum | Queue):
                part.advance()

    def choose(self, count: int, targets: Tensor | None) -> Tensor | None:
        """Return which of `count` images to train on, int64 (n,); None: all. Asked once, and charged like a step.

        Of a method inside ReLA or an accelerator it is not asked.

        Args:
            count: how many training images there are.
            targets: float32 (count, k), the prior's, where there is one.
        """
        return None

    @property
    def recordable(self) -> bool:
        """Whether `loss` decides, draws and (but for a `Queue`) keeps nothing on the host: a CUDA graph on a GPU."""
        return False

    @property
    def kind(self) -> str:
        """The kind of the next step: steps of one kind, with what comes before and after, take the same FLOPs.

        These are counted once.
        """
        return "method"

    @property
    def wants_targets(self) -> bool:
        """Whether the next step's loss is of the batch's targets."""
        return False

    @property
    def leaves_unused(self) -> bool:
        """Whether the next step gives no gradient to some of the trained parameters."""
        return False

    rate: float = 1.0  # of the next step, times that of the recipe
    classes: int | None = None  # that the loss tells apart, where it looks at labels
    switch_step: int | None = None  # steps after which a phase on targets ended; None: it lasts, or there is none

    def __init_subclass__(cls, **more: Any) -> None:
        """Set `recordable` to False in a class that overrides `loss` without setting `recordable`."""
        super().__init_subclass__(**more)
        if "loss" in vars(cls) and "recordable" not in vars(cls):
            cls.recordable = False  # type: ignore[assignment, method-assign]
