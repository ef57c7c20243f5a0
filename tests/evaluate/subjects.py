"""A backbone and images that were made up, as evaluations get them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core.paths import Paths
from bench.data import Split
from bench.data.images import Images
from bench.data.loader import open_source
from bench.evaluate.subject import Subject
from bench.grid.cell import Protocol
from bench.plan.graph import Ready

CPU = torch.device("cpu")


class Pooled(nn.Module):
    """The mean of each channel in each quarter of an image: 12 features."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def patterns(count: int, size: int = 8, classes: int = 3, seed: int = 0) -> Split:
    """Soft colours, one for each class, and noise around them."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    colours = np.random.default_rng(99).uniform(90, 160, (classes, 3, 1, 1))
    images = colours[labels] + draw.normal(0, 25, (count, 3, 1, 1)) + draw.normal(0, 15, (count, 3, size, size))
    return Split(images.clip(0, 255).astype(np.uint8), labels.astype(np.int64))


def source_of(split: Split, size: int = 8) -> Any:
    return open_source(split, size, CPU, workers=0)


def subject_of(
    backbone: nn.Module, train: Split, test: Split, size: int = 8, classes: int = 3, seed: int = 3, data: Path = Path()
) -> Subject:
    """A subject whose cell says no more than evaluations ask."""
    cell = SimpleNamespace(seed=seed, backbone="made_up", protocol=Protocol())
    images = Images(source_of(train, size), source_of(test, size), classes, size, "Patterns")
    paths = Paths(data=data, results=data / "results", grid="tiny")
    task = cast(Ready, SimpleNamespace(cell=cell))
    return Subject(task, backbone.eval(), images, paths, CPU, 0, lambda: None)


Floats = npt.NDArray[np.float64]
