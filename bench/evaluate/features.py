"""Features of a frozen backbone, and a weighted nearest-neighbour vote on them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.core.device import autocast
from bench.core.errors import TrainingError
from bench.data.augment import EvalView
from bench.data.loader import Source
from bench.grid.cell import Knn

BANK_BYTES = 2**28  # of the training features that one step of the vote looks at: all of CIFAR's and Tiny-ImageNet's
VOTE_BYTES = 2**27  # of the ballots that are counted at once


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


@torch.no_grad()
def knn_accuracy(features: Features, classes: int, knn: Knn) -> float:
    """Return the accuracy of a vote of the k nearest training images, weighted by exp(cosine / temperature).

    As lightly's `knn_predict`, with the training features normalised a part at a time instead of copied as a whole.
    """
    k = min(knn.k, len(features.train))
    tests = torch.split(features.test, 512)
    nearest: list[tuple[Tensor, Tensor]] = []  # for each part of the test images, cosines and labels (b, <= k)
    rows = max(1, BANK_BYTES // (4 * features.train.shape[1]))
    for part, labels in zip(torch.split(features.train, rows), torch.split(features.train_labels, rows), strict=True):
        bank = normalize(part, dim=1).T.contiguous()
        found = [_nearest(normalize(test, dim=1), bank, labels, k) for test in tests]
        nearest = [_nearer(*pair, k) for pair in zip(nearest, found, strict=True)] if nearest else found
    right = 0
    for (cosines, voters), labels in zip(nearest, torch.split(features.test_labels, 512), strict=True):
        size = max(1, VOTE_BYTES // (4 * k * classes))
        parts = (torch.split(values, size) for values in (cosines, voters, labels))
        for cosine, voter, label in zip(*parts, strict=True):
            ballots = torch.zeros(voter.numel(), classes, device=voter.device).scatter(1, voter.reshape(-1, 1), 1.0)
            weighted = ballots.view(*voter.shape, classes) * (cosine / knn.temperature).exp()[:, :, None]
            right += int((weighted.sum(dim=1).argsort(dim=-1, descending=True)[:, 0] == label).sum())
    return right / len(features.test_labels)


def _nearest(test: Tensor, bank: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and labels (b, k) of the k columns of `bank` (d, n) that are nearest to each row of `test`."""
    cosines, index = torch.mm(test, bank).topk(min(k, bank.shape[1]))
    return cosines, labels[index]


def _nearer(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest of two sets of neighbours."""
    cosines, labels = (torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
    cosines, index = cosines.topk(min(k, cosines.shape[1]))
    return cosines, labels.gather(1, index)
