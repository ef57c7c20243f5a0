"""The contract of an accelerator: what trains the backbone of a method for less."""

from typing import ClassVar

from torch import Tensor

from bench.data.augment import View
from methods.base import Batch, Method


class Accelerator(Method):
    """A method around a method, which trains its backbone for less: it has `views`, `loss` and all else of its own.

    One that trains by a loss of its own alone, such as a distillation, derives from this class; one that goes on with
    the method's, from `Around`. The harness charges what it spends: steps, its prior's targets, and `choose`.

    Args:
        method: the method to accelerate.
        target_dim: the dimension k of the prior's targets; None without a prior.
        Further arguments of a subclass, with defaults, are what a grid can set under `accelerate`.
    """

    needs_prior: ClassVar[bool] = False  # whether an arm names a prior, of which the batches then have targets

    def __init__(self, method: Method, target_dim: int | None) -> None:
        super().__init__(method.backbone, method.dim)


class Around(Accelerator):
    """An accelerator whose steps are those of its method, but for what a subclass changes.

    The method may have ReLA around it already.
    """

    def __init__(self, method: Method, target_dim: int | None) -> None:
        super().__init__(method, target_dim)
        self.method = method

    @property
    def views(self) -> tuple[View, ...]:  # type: ignore[override]
        return self.method.views

    def loss(self, batch: Batch) -> Tensor:
        return self.method.loss(batch)

    def before_step(self, step: int, steps: int) -> None:
        self.method.before_step(step, steps)

    def after_step(self) -> None:
        self.method.after_step()

    @property
    def recordable(self) -> bool:
        return self.method.recordable

    @property
    def kind(self) -> str:
        return self.method.kind

    @property
    def wants_targets(self) -> bool:
        return self.method.wants_targets

    @property
    def leaves_unused(self) -> bool:
        return self.method.leaves_unused

    @property
    def rate(self) -> float:  # type: ignore[override]
        return self.method.rate

    @property
    def switch_step(self) -> int | None:  # type: ignore[override]
        return self.method.switch_step
