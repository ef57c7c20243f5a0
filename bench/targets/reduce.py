"""ReLA-D: a prior's features of the training set, reduced and standardised (Sun et al. 2024, public code)."""

import torch
from torch import Tensor

PART = 512  # images of a stream that are float64 at a time


def reduce_features(features: Tensor, dim: int) -> tuple[Tensor, int]:
    """Return the standardised principal components of features, and how many of them are empty.

    Features (N, p) are centred and projected onto the top k = min(dim, p) eigenvectors of their covariance, in
    float64; each component then has mean 0 and (biased) variance 1. Components are in the order of falling
    variance, their sign makes the eigenvector's largest entry positive. A component without variance, such as a
    prior with constant outputs has, is 0: the public code would divide by zero there.
    """
    count = len(features)
    mean = features.double().mean(dim=0)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
    for part in torch.split(features, 16384):
        centred = part.double() - mean
        covariance += centred.T @ centred
    values, vectors = components(covariance / max(count - 1, 1), dim)
    full = has_variance(values)
    reduced = torch.cat([(part.double() - mean) @ vectors for part in torch.split(features, 16384)])
    reduced -= reduced.mean(dim=0)
    deviation = reduced.std(dim=0, correction=0)
    standard = torch.where(full, reduced / torch.where(full, deviation, 1.0), 0.0)
    return standard.float(), int((~full).sum())


def components(covariance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the largest k = min(dim, p) eigenvalues (k,) of a covariance (p, p), falling, and eigenvectors (p, k)."""
    values, vectors = torch.linalg.eigh(covariance)
    k = min(dim, len(values))
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return values, vectors * largest.sign()


def has_variance(values: Tensor) -> Tensor:
    """Tell which components, by their falling eigenvalues (k,), are not empty: bool (k,)."""
    return values > values[0].clamp(min=1e-30) * 1e-12


class Moments:
    """Count, mean (p,) and scatter (p, p) of features in float64, merged part by part (Chan, Golub, LeVeque 1983).

    The scatter is that around the mean, so that nothing is lost where the mean is large beside the deviation.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add features float32 (b, p), which may be on another device."""
        for part in torch.split(features, PART):
            values = part.to(self.mean.device).double()
            mean = values.mean(dim=0)
            values.sub_(mean)
            shift, total = mean - self.mean, self.count + len(part)
            self.scatter.addmm_(values.T, values)
            self.scatter.addr_(shift, shift, alpha=self.count * len(part) / total)
            self.mean += shift * (len(part) / total)
            self.count = total

    def standardising(self, dim: int) -> tuple[Tensor, int]:
        """Return what maps centred features to targets, float64 (p, k), and how many of these are empty.

        The standard deviation of a component is that of its eigenvalue.
        """
        values, vectors = components(self.scatter / max(self.count - 1, 1), dim)
        full = has_variance(values)
        variance = values * ((self.count - 1) / self.count)
        scale = torch.where(full, 1 / torch.where(full, variance, 1.0).sqrt(), 0.0)
        return vectors * scale, int((~full).sum())
