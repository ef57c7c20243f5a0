"""What a part of the training labels is enough for."""

import torch

from bench.data import balanced_part
from bench.evaluate.features import Features
from bench.evaluate.fine_tune import fine_tuned
from bench.evaluate.linear import top
from bench.evaluate.linear_probe import linear_probe
from bench.evaluate.subject import Found, Subject
from bench.grid.evaluation import FewLabels


def few_labels(subject: Subject, settings: FewLabels) -> Found:
    """Return the accuracies of a linear probe and of the fine-tuned backbone, for each part of the labels.

    The parts are drawn by the cell's seed, balanced over the classes, each within the next larger one.
    """
    features, classes = subject.features, subject.images.classes
    values: dict[str, float] = {}
    flops = 0
    for share in sorted(settings.shares):
        part = labelled(features.train_labels, share, subject.seed)
        few = Features(features.train[part], features.train_labels[part], features.test, features.test_labels)
        (fit,) = linear_probe(few, classes, subject.probe, subject.seed)
        tuned = fine_tuned(subject, settings, part.cpu())
        flops += tuned.flops or 0
        values |= {f"{100 * share:g}% linear {name}": value for name, value in top(fit, classes).items()}
        values |= {f"{100 * share:g}% fine-tuned {name}": value for name, value in tuned.values.items()}
    return Found(values, flops)


def labelled(labels: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Return the indices int64 (n,) of a class-balanced share of the images, at least one of each class."""
    host = labels.cpu().numpy()
    count = max(round(share * len(host)), len(set(host.tolist())))
    return torch.from_numpy(balanced_part(host, count, seed)).to(labels.device)
