"""Evaluation of frozen features: the paper's linear probe and a weighted nearest-neighbour vote."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from bench.seeds import derive, generator
from bench.source import Source
from bench.spec import Knn, Probe

LAST_EPOCHS = 3  # the paper reports mean and deviation of the test accuracy over these
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
def extract(backbone: nn.Module, train: Source, test: Source, size: int) -> Features:
    """Return the features of the un-augmented images in eval mode; the backbone's mode is put back after.

    They are held once, on the device.
    """
    mode = backbone.training
    backbone.eval()
    try:
        parts = [_features_of(backbone, source, size) for source in (train, test)]
    finally:
        backbone.train(mode)
    return Features(parts[0], train.labels, parts[1], test.labels)


def _features_of(backbone: nn.Module, source: Source, size: int) -> Tensor:
    """Return the features float32 (N, d) of a source's images."""
    features, filled = torch.empty(0), 0
    for images in source.plain(size):
        part = backbone(images)
        if not filled:
            features = torch.empty(len(source.labels), part.shape[1], device=part.device)
        features[filled : filled + len(part)] = part
        filled += len(part)
    return features


def linear_probe(features: Features, classes: int, probe: Probe, seed: int) -> list[list[float]]:
    """Train a Linear on the features for each probe seed; return their test accuracies after each of the last epochs.

    Shares of images, [probe seeds][last epochs]. Adam at a constant rate, all images in each epoch, the short last
    batch included (paper, protocol). The probes are trained side by side, each on its own order of the images.
    """
    device, count = features.train.device, len(features.train)
    seeds = [seed if which == 0 else derive(seed, "probe seed", which) for which in range(probe.seeds)]
    weight, bias = (start.to(device).requires_grad_() for start in _initial(seeds, features.train.shape[1], classes))
    optimiser = torch.optim.Adam([weight, bias], lr=probe.lr, fused=True)
    accuracies = []
    for epoch in range(probe.epochs):
        orders = [torch.randperm(count, generator=generator(each, "probe", epoch)) for each in seeds]
        for index in torch.split(torch.stack(orders).to(device), probe.batch_size, dim=1):
            scores = torch.baddbmm(bias, features.train[index], weight)
            loss = cross_entropy(scores.flatten(0, 1), features.train_labels[index].flatten())
            (loss * len(seeds)).backward()  # type: ignore[no-untyped-call]  # so that each probe has the gradient of its own mean
            optimiser.step()
            optimiser.zero_grad()
        if epoch >= probe.epochs - LAST_EPOCHS:
            with torch.no_grad():
                right = (features.test @ weight + bias).argmax(dim=2) == features.test_labels
            accuracies.append(right.double().mean(dim=1).tolist())
    return [list(each) for each in zip(*accuracies, strict=True)]


def _initial(seeds: list[int], dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return the initial weights (seeds, dim, classes) and biases (seeds, 1, classes) of torch's Linear."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layers = []
        for seed in seeds:
            torch.manual_seed(derive(seed, "probe"))
            layers.append(nn.Linear(dim, classes))
        weights = torch.stack([layer.weight.T for layer in layers])
        return weights, torch.stack([layer.bias[None] for layer in layers])


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
