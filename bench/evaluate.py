"""Evaluation of frozen features: the paper's linear probe and a weighted nearest-neighbour vote."""

from dataclasses import dataclass

import torch
from lightly.utils.benchmarking import knn_predict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from bench.seeds import derive, generator
from bench.source import Source
from bench.spec import Knn, Probe

LAST_EPOCHS = 3  # the paper reports mean and deviation of the test accuracy over these


@dataclass(frozen=True)
class Features:
    """Features float32 (N, d) and labels int64 (N,) of the training and the test images."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@torch.no_grad()
def extract(backbone: nn.Module, train: Source, test: Source, size: int) -> Features:
    """Return the features of the un-augmented images in eval mode; the backbone's mode is put back after."""
    mode = backbone.training
    backbone.eval()
    try:
        parts = [torch.cat([backbone(images).float() for images in s.plain(size)]) for s in (train, test)]
    finally:
        backbone.train(mode)
    return Features(parts[0], train.labels, parts[1], test.labels)


def linear_probe(features: Features, classes: int, probe: Probe, seed: int) -> list[float]:
    """Train one Linear on the features and return the test accuracy after each of the last epochs, a share of images.

    Adam at a constant rate, all images in each epoch, the short last batch included (paper, protocol).
    """
    count, dim = features.train.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "probe"))
        classifier = nn.Linear(dim, classes)
    classifier.to(features.train.device)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=probe.lr, fused=True)
    accuracies = []
    for epoch in range(probe.epochs):
        order = torch.randperm(count, generator=generator(seed, "probe", epoch)).to(features.train.device)
        batches = torch.split(features.train[order], probe.batch_size)
        for inputs, labels in zip(batches, torch.split(features.train_labels[order], probe.batch_size), strict=True):
            cross_entropy(classifier(inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()
        if epoch >= probe.epochs - LAST_EPOCHS:
            with torch.no_grad():
                right = classifier(features.test).argmax(dim=1) == features.test_labels
            accuracies.append(right.double().mean().item())
    return accuracies


@torch.no_grad()
def knn_accuracy(features: Features, classes: int, knn: Knn) -> float:
    """Return the accuracy of a vote of the k nearest training images, weighted by exp(cosine / temperature)."""
    bank = normalize(features.train, dim=1).T.contiguous()
    right = 0
    for part, labels in zip(torch.split(features.test, 512), torch.split(features.test_labels, 512), strict=True):
        ranked = knn_predict(
            normalize(part, dim=1),
            bank,
            features.train_labels,
            classes,
            min(knn.k, bank.shape[1]),
            knn.temperature,
        )
        right += int((ranked[:, 0] == labels).sum())
    return right / len(features.test_labels)
