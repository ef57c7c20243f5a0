"""The linear probe of clean images on spoilt ones: ten of the corruptions of Hendrycks and Dietterich 2019.

Those ten that are formulas on whole batches; arXiv 1903.12261 and the public code have nine more, some of which need
other images or a codec. Images are floats in [0, 1] at the size that the backbone sees, and are not rounded to bytes.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d, pad

from bench.core.seeds import generator
from bench.data import balanced_part
from bench.data.augment import EvalView, normalise
from bench.data.loader import Source
from bench.data.resample import resample, send
from bench.evaluate.linear_probe import classifier
from bench.evaluate.subject import Found, Subject
from bench.grid.evaluation import Corruptions

SEVERITIES = range(1, 6)
SMALL = 64  # pixels of a side, up to which images are spoilt as CIFAR-10's are, and above as ImageNet's
BATCH = 128  # images that are spoilt at a time; part of what each image meets


def corruptions(subject: Subject, settings: Corruptions) -> Found:
    """Return the probe's accuracy on images of each corruption, on all together, and on the same images clean.

    `relative`, the mean as a share of the clean accuracy, is left out where that is 0.
    """
    labels = subject.images.test.labels
    index = torch.from_numpy(balanced_part(labels.cpu().numpy(), min(settings.images, len(labels)))).to(labels.device)
    clean, right = plain_images(subject.images.test, subject.view, index), labels[index]
    scores = classifier(subject.features, subject.images.classes, subject.probe, subject.seed)

    def accuracy(spoil: Callable[[Tensor], Tensor]) -> float:
        subject.check()
        return _accuracy(subject.backbone, scores, clean, right, subject.view, spoil)

    values = {}
    for kind in CORRUPTIONS:
        draws = (generator(subject.seed, "corruption", kind, severity) for severity in SEVERITIES)
        spoilt = [spoiler(kind, severity, draw) for severity, draw in zip(SEVERITIES, draws, strict=True)]
        values[kind] = statistics.fmean(map(accuracy, spoilt))
    mean, untouched = statistics.fmean(values.values()), accuracy(lambda images: images)
    relative = {"relative": mean / untouched} if untouched else {}
    return Found({"mean": mean, **relative, "clean": untouched, **values})


def plain_images(source: Source, view: EvalView, index: Tensor) -> Tensor:
    """Return some of a source's images as a view shows them before they are normalised, float32 (n, 3, size, size)."""
    taken, start = [], 0
    for images in source.eval_batches(replace(view, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))):
        here = index[(index >= start) & (index < start + len(images))] - start
        taken.append(images[here].contiguous())
        start += len(images)
    return torch.cat(taken)


@torch.no_grad()
def _accuracy(
    backbone: nn.Module,
    scores: Callable[[Tensor], Tensor],
    clean: Tensor,
    labels: Tensor,
    view: EvalView,
    spoil: Callable[[Tensor], Tensor],
) -> float:
    """Return the share of images that are right once they are spoilt."""
    right = 0
    for images, label in zip(torch.split(clean, BATCH), torch.split(labels, BATCH), strict=True):
        features = backbone(normalise(spoil(images), view.mean, view.std)).flatten(1).float()
        right += int((scores(features).argmax(dim=1) == label).sum())
    return right / len(labels)


def spoiler(kind: str, severity: int, draw: Generator) -> Callable[[Tensor], Tensor]:
    """Return what spoils images (B, 3, H, W), batch after batch, by random numbers of a generator on the CPU."""

    def spoil(images: Tensor) -> Tensor:
        corruption = CORRUPTIONS[kind]
        amounts = (corruption.small if images.shape[-1] <= SMALL else corruption.large)[severity - 1]
        return corruption.spoil(images, draw, *amounts).clamp(0, 1)

    return spoil


def gaussian_noise(images: Tensor, draw: Generator, scale: float) -> Tensor:
    """Return images plus normal noise, one number for each value."""
    return images + scale * _normal(images, draw)


def shot_noise(images: Tensor, draw: Generator, photons: float) -> Tensor:
    """Return counts of photons, Poisson around so many for white, as a share of that number.

    By inversion: each value takes one random number whatever it is, and so finds its own on every device.
    """
    rate, share = photons * images, send(torch.rand(images.shape, generator=draw), images.device)
    count = torch.zeros_like(images)
    most = math.ceil(math.log2(photons + 10 * math.sqrt(photons) + 10))
    for step in (2.0**power for power in reversed(range(most))):  # digit by digit, the most whose share is below
        more = count + step
        count = torch.where(torch.special.gammaincc(more, rate) < share, more, count)  # P(X < more)
    return count / photons


def impulse_noise(images: Tensor, draw: Generator, amount: float) -> Tensor:
    """Return images of whose values a share is black or white, one as often as the other (salt and pepper)."""
    share = send(torch.rand(images.shape, generator=draw), images.device)
    return images.masked_fill(share < amount / 2, 0).masked_fill(share >= 1 - amount / 2, 1)


def speckle_noise(images: Tensor, draw: Generator, scale: float) -> Tensor:
    """Return images plus normal noise in proportion to their values."""
    return images + scale * images * _normal(images, draw)


def _normal(images: Tensor, draw: Generator) -> Tensor:
    return send(torch.randn(images.shape, generator=draw), images.device)


def defocus_blur(images: Tensor, draw: Generator, radius: float, soft: float) -> Tensor:
    """Return images blurred by a disc with soft rims; beyond the border they are mirrored."""
    return _filtered(images, disc(radius, soft), "reflect")


def disc(radius: float, soft: float) -> Tensor:
    """Return a disc of weights (2 r + 1, 2 r + 1) that sum to 1, itself blurred by a Gaussian of few pixels."""
    rim = 1 if radius <= 8 else 2  # pixels that the Gaussian reaches
    reach = math.floor(radius) + rim
    place = torch.arange(-reach, reach + 1.0)
    inside = (place.square()[:, None] + place.square() <= radius**2).float()
    taps = gaussian(soft, rim)
    blur = torch.outer(taps, taps)
    return conv2d(inside[None, None] / inside.sum(), blur[None, None], padding=rim)[0, 0]


def gaussian_blur(images: Tensor, draw: Generator, sigma: float) -> Tensor:
    """Return images blurred by a Gaussian up to 4 sigma; beyond the border they go on as their last pixels."""
    taps = gaussian(sigma, reach=int(4 * sigma + 0.5))
    return _filtered(_filtered(images, taps[:, None], "replicate"), taps[None], "replicate")


def gaussian(sigma: float, reach: int) -> Tensor:
    """Return the weights (2 reach + 1,) of a Gaussian; they sum to 1."""
    taps = (-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2)).exp()
    return taps / taps.sum()


def _filtered(images: Tensor, kernel: Tensor, border: str) -> Tensor:
    """Return each channel of images filtered by a kernel of an odd number of rows and of columns."""
    down, across = (pixels // 2 for pixels in kernel.shape)
    planes = pad(images.flatten(0, 1)[:, None], (across, across, down, down), mode=border)
    return conv2d(planes, kernel[None, None].to(images.device)).view_as(images)


def brightness(images: Tensor, draw: Generator, more: float) -> Tensor:
    """Return images of a higher value (V of HSV), the same hue and saturation."""
    value = images.amax(dim=1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-12)), raised)


def contrast(images: Tensor, draw: Generator, factor: float) -> Tensor:
    """Return images nearer to the mean of each channel."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (images - mean)


def saturate(images: Tensor, draw: Generator, factor: float, more: float) -> Tensor:
    """Return images of another saturation (S of HSV), the same hue and value; a grey pixel's hue is red."""
    value, least = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = value - least
    below = (value - images) / chroma.clamp(min=1e-12)  # of each channel, 1 for the least
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device)[:, None, None]
    saturation = (factor * chroma / value.clamp(min=1e-12) + more).clamp(0, 1)
    return value * (1 - saturation * torch.where(chroma > 0, below, red))


def pixelate(images: Tensor, draw: Generator, share: float) -> Tensor:
    """Return images with as many fewer pixels a side, each as large as it must be."""
    size = images.shape[-1]
    few = max(1, int(size * share))
    weights = (box(few, size) @ box(size, few)).to(images.device).expand(len(images), -1, -1)
    return resample(images, weights, weights)


def box(pixels: int, size: int) -> Tensor:
    """Return weights (size, pixels) that resize by PIL's box filter: the mean of all pixels whose centres are near."""
    distance = (2 * torch.arange(pixels) + 1) * size - (2 * torch.arange(size)[:, None] + 1) * pixels
    near = (distance > -max(pixels, size)) & (distance <= max(pixels, size))
    return near.float() / near.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Corruption:
    """What spoils images, and the amounts at severities 1 to 5: CIFAR-10-C's for small images, and ImageNet-C's."""

    spoil: Callable[..., Tensor]
    small: Sequence[tuple[float, ...]]
    large: Sequence[tuple[float, ...]]


def _of(spoil: Callable[..., Tensor], small: Sequence[float], large: Sequence[float]) -> Corruption:
    """Return a corruption of one amount."""
    return Corruption(spoil, [(amount,) for amount in small], [(amount,) for amount in large])


CORRUPTIONS = {
    "gaussian_noise": _of(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": _of(shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": _of(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": _of(speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "defocus_blur": Corruption(
        defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "gaussian_blur": _of(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
    "brightness": _of(brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": _of(contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": Corruption(
        saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
    "pixelate": _of(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
}
