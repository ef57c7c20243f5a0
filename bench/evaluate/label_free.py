"""What features show without a label: RankMe, LiDAR, alignment and uniformity."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.core.errors import TrainingError
from bench.core.seeds import derive
from bench.data.augment import View
from bench.data.sampler import Part
from bench.evaluate.score import effective_rank
from bench.evaluate.subject import Found, Subject
from bench.grid.evaluation import LabelFree

DELTA = 1e-4  # LiDAR's: added to the scatter within classes, which may have no inverse
BATCH = 512  # views that are in memory at a time
ROWS = 1024  # of the pairs of test images that are compared at a time


def label_free(subject: Subject, settings: LabelFree) -> Found:
    """Return RankMe and uniformity of the test images, LiDAR and alignment of views of training images.

    The views are BYOL's without blur. Raises TrainingError when their features are not finite.
    """
    views, test = view_features(subject, settings), subject.features.test
    return Found(
        {
            "RankMe": effective_rank(test),
            "LiDAR": lidar(views),
            "alignment": alignment(views[:, 0], views[:, 1]),
            "uniformity": uniformity(test),
        }
    )


@torch.no_grad()
def view_features(subject: Subject, settings: LabelFree) -> Tensor:
    """Return features float32 (n, q, d) of q views each of the first n training images. Raises TrainingError."""
    views, made = (View(),) * settings.views, []
    for order in _orders(subject, settings):
        for _, images in subject.images.train.batches(views, order, range(order.steps_per_epoch)):
            subject.check()
            made.append(torch.stack([subject.backbone(each).flatten(1).float() for each in images], dim=1))
    features = torch.cat(made)
    if not features.isfinite().all():
        raise TrainingError("the backbone's features of augmented images are not finite numbers")
    return features


def _orders(subject: Subject, settings: LabelFree) -> Iterator[Part]:
    """Yield what takes each of the first images once: those that fill batches, and the rest."""
    count = min(settings.images, len(subject.images.train.labels))
    size = min(count, max(1, BATCH // settings.views))
    full = count - count % size
    for part in (torch.arange(full), torch.arange(full, count)):
        if len(part):
            yield Part(part, min(size, len(part)), derive(subject.seed, "label-free", len(part)))


def lidar(features: Tensor) -> float:
    """Return LiDAR of features (n, q, d) of q views of n images (arXiv 2312.04000).

    The images are the classes of a linear discriminant analysis: its matrix is the scatter between them, whitened by
    the scatter within them, and LiDAR the effective number of its eigenvalues.
    """
    views = features.double()
    means = views.mean(dim=1)
    apart, around = means - means.mean(dim=0), (views - means[:, None]).flatten(0, 1)
    between, within = apart.T @ apart / len(apart), around.T @ around / len(around)
    values, vectors = torch.linalg.eigh(within + DELTA * torch.eye(len(within), device=within.device))
    whitened = vectors * values.clamp(min=DELTA).rsqrt()
    eigenvalues = torch.linalg.eigvalsh(whitened.T @ between @ whitened).clamp(min=0)
    return effective_rank(eigenvalues.diag())  # whose singular values they are


def alignment(one: Tensor, other: Tensor) -> float:
    """Return the mean squared distance of the directions of two views' features (n, d) (arXiv 2005.10242, alpha 2)."""
    apart = normalize(one.double(), dim=1) - normalize(other.double(), dim=1)
    return float(apart.square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Return log mean exp(-2 |x - y|^2) over pairs of directions of features (N, d) (arXiv 2005.10242, t 2).

    0 where all are the same, and about -4 at the least, of many dimensions.
    """
    directions = normalize(features.double(), dim=1)
    lengths = directions.square().sum(dim=1)  # 0 of features that are 0, and else 1
    total = -float(len(directions))  # an image is no pair with itself
    for part, length in zip(torch.split(directions, ROWS), torch.split(lengths, ROWS), strict=True):
        squared = (length[:, None] + lengths - 2 * part @ directions.T).clamp(min=0)
        total += float((-2 * squared).exp().sum())
    return math.log(total / (len(directions) * (len(directions) - 1)))
