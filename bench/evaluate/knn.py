"""Weighted votes of the nearest training images (kNN), several from one search."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.evaluate.features import Features
from bench.evaluate.subject import Found, Subject
from bench.grid.cell import Knn
from bench.grid.evaluation import Neighbours

BANK_BYTES = 2**28  # of the training features that one step of the vote looks at: all of CIFAR's and Tiny-ImageNet's
VOTE_BYTES = 2**27  # of the ballots that are counted at once


def knn(subject: Subject, settings: Neighbours) -> Found:
    """Return the accuracy of the vote of each size, at the temperature of the cell's own."""
    temperature = subject.task.cell.protocol.knn.temperature
    shares = votes(subject.features, subject.images.classes, settings.k, temperature)
    return Found({f"k = {k}": share for k, share in zip(settings.k, shares, strict=True)})


def knn_accuracy(features: Features, classes: int, knn: Knn) -> float:
    """Return the accuracy of a vote of the k nearest training images, weighted by exp(cosine / temperature)."""
    return votes(features, classes, [knn.k], knn.temperature)[0]


@torch.no_grad()
def votes(features: Features, classes: int, sizes: Sequence[int], temperature: float) -> list[float]:
    """Return the accuracies of votes of so many nearest training images, weighted by exp(cosine / temperature).

    As lightly's `knn_predict`, with the training features normalised a part at a time instead of copied as a whole.
    """
    most = min(max(sizes), len(features.train))
    tests = torch.split(features.test, 512)
    nearest: list[tuple[Tensor, Tensor]] = []  # for each part of the test images, cosines and labels (b, <= most)
    rows = max(1, BANK_BYTES // (4 * features.train.shape[1]))
    for part, labels in zip(torch.split(features.train, rows), torch.split(features.train_labels, rows), strict=True):
        bank = normalize(part, dim=1).T.contiguous()
        found = [_nearest(normalize(test, dim=1), bank, labels, most) for test in tests]
        nearest = [_nearer(*pair, most) for pair in zip(nearest, found, strict=True)] if nearest else found
    pairs = list(zip(nearest, torch.split(features.test_labels, 512), strict=True))
    right = [sum(_right(near, labels, min(k, most), classes, temperature) for near, labels in pairs) for k in sizes]
    return [count / len(features.test_labels) for count in right]


def _right(nearest: tuple[Tensor, Tensor], labels: Tensor, k: int, classes: int, temperature: float) -> int:
    """Return how many images the vote of the first k neighbours gets right, some at a time."""
    size, right = max(1, VOTE_BYTES // (4 * k * classes)), 0
    parts = (torch.split(values, size) for values in (nearest[0][:, :k], nearest[1][:, :k], labels))
    for cosine, voter, label in zip(*parts, strict=True):
        ballots = torch.zeros(voter.numel(), classes, device=voter.device).scatter(1, voter.reshape(-1, 1), 1.0)
        weighted = ballots.view(*voter.shape, classes) * (cosine / temperature).exp()[:, :, None]
        right += int((weighted.sum(dim=1).argsort(dim=-1, descending=True)[:, 0] == label).sum())
    return right


def _nearest(test: Tensor, bank: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and labels (b, k) of the k columns of `bank` (d, n) that are nearest to each row of `test`."""
    cosines, index = torch.mm(test, bank).topk(min(k, bank.shape[1]))
    return cosines, labels[index]


def _nearer(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest of two sets of neighbours."""
    cosines, labels = (torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
    cosines, index = cosines.topk(min(k, cosines.shape[1]))
    return cosines, labels.gather(1, index)
