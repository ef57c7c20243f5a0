"""Features of a frozen backbone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.core.device import autocast
from bench.core.errors import TrainingError
from bench.data.augment import EvalView
from bench.data.loader import Source


@dataclass(frozen=True)
class Features:
    """Features float32 (N, d) and labels int64 (N,) of the training and the test images."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@torch.no_grad()
def extract(backbone: nn.Module, train: Source, test: Source, view: EvalView) -> Features:
    """Return the features of the un-augmented images in eval mode; the backbone's mode is put back after.

    The features are held once, on the device. Raises TrainingError when they are not finite.
    """
    mode = backbone.training
    backbone.eval()
    try:
        parts = [_features_of(backbone, source, view) for source in (train, test)]
    finally:
        backbone.train(mode)
    return Features(parts[0], train.labels, parts[1], test.labels)


def _features_of(backbone: nn.Module, source: Source, view: EvalView) -> Tensor:
    """Return the features float32 (N, d) of a source's images. Raises TrainingError."""
    features, filled = torch.empty(0), 0
    for images in source.eval_batches(view):
        with autocast(images.device, view.precision):
            part = backbone(images).flatten(1).float()
        if not filled:
            features = torch.empty(len(source.labels), part.shape[1], device=part.device)
        features[filled : filled + len(part)] = part
        filled += len(part)
    if not features.isfinite().all():
        raise TrainingError("the backbone's features are not finite numbers")
    return features
