"""A trained backbone that is evaluated, and what evaluations share of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from bench.core.paths import Paths
from bench.data.augment import EvalView
from bench.data.images import Images
from bench.evaluate.features import Features, extract
from bench.grid.cell import Probe
from bench.models.backbones import build_backbone
from bench.models.weights import load_weights
from bench.plan.graph import Ready


@dataclass(frozen=True)
class Subject:
    """A cell's trained backbone, in eval mode, and the cell's images. `check` may be called often, and may raise."""

    task: Ready
    backbone: nn.Module
    images: Images
    paths: Paths
    device: torch.device
    workers: int
    check: Callable[[], None]

    @property
    def seed(self) -> int:
        """The cell's seed."""
        return self.task.cell.seed

    @property
    def probe(self) -> Probe:
        """The probe of recipe `lbfgs`, with the penalties of the cell's own where that is of this recipe."""
        probe = self.task.cell.protocol.probe
        return Probe(recipe="lbfgs", l2=probe.l2)

    @property
    def view(self) -> EvalView:
        """How the backbone is shown images."""
        return EvalView(self.images.size, shorter=self.task.cell.protocol.eval_resize)

    @cached_property
    def features(self) -> Features:
        """The features of the cell's images, by one pass over them."""
        return extract(self.backbone, self.images.train, self.images.test, self.view)


@dataclass(frozen=True)
class Found:
    """What an evaluation has measured, by name; FLOPs of its training, and digests of other datasets that it used."""

    values: Mapping[str, float]
    flops: int | None = None
    data: Mapping[str, str] = field(default_factory=dict)


def trained_backbone(task: Ready, images: Images, paths: Paths, device: torch.device) -> nn.Module:
    """Return the backbone that a finished cell has saved. Raises UserError when the file is damaged."""
    module = build_backbone(task.cell.backbone, images.size).module
    load_weights(module, paths.backbone(task.id))
    return module.to(device).to(memory_format=torch.channels_last).eval()
