"""Batched, per-sample random views of images, computed where the images are.

The law is that of torchvision's `RandomResizedCrop`, `RandomHorizontalFlip`, `ColorJitter` and
`RandomGrayscale`, then blur and solarisation, in the order of BYOL (Grill et al. 2020, appendix B) and of
lightly's `BYOLView1Transform`. Two things differ from a PIL pipeline: all maths is float32 on [0, 1], with
no rounding to uint8 in between, and the blur is a true Gaussian (see `resample.gaussian`).

Every random number comes from a CPU generator, before any image is touched. A batch thus meets the same
augmentation on every device, and the host knows each index set without waiting for the device.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from bench.core.device import threads
from bench.core.distributed import rank_slice
from bench.data.resample import crop_boxes, gaussian, resample, resized_crops, send_together, spans
from bench.grid.base import Precision

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_SIGMA = (0.1, 2.0)
PIECE = 2**18  # values of an augmented piece on the CPU: 1 MiB


@dataclass(frozen=True)
class View:
    """The random law of one augmented view (names as in torchvision); the defaults are BYOL without blur."""

    crop: tuple[float, float] | None = (0.08, 1.0)  # share of the area; None: the images are crops already
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter: float = 0.8  # probability that the colour jitter is applied
    grey: float = 0.2
    blur: float = 0.0  # probability; Gaussian, sigma uniform in (0.1, 2)
    solarise: float = 0.0  # probability; threshold 128/256 as in lightly's RandomSolarization
    size: float = 1.0  # pixels of a side, as a share of the cell's image size: less for a local view (multi-crop)

    def pixels(self, size: int) -> int:
        """Return the pixels of a side, for images of `size` pixels: of a local view a multiple of 4, as ViTs need."""
        return size if self.size == 1 else max(4, 4 * round(size * self.size / 4))


@dataclass(frozen=True)
class EvalView:
    """How a frozen network is shown images: their centres, un-augmented and normalised."""

    size: int  # pixels of a side
    mean: Sequence[float] = MEAN  # of each channel
    std: Sequence[float] = STD
    precision: Precision = "fp32"  # in which the network computes
    shorter: int | None = None  # pixels that the shorter side is resized to before the centre is taken; None: `size`


class Draws(NamedTuple):
    """What chance decided for B samples; tensors on the CPU."""

    boxes: Tensor  # (B, 4) int64: top, left, height, width
    flip: Tensor  # (B,) bool
    order: Tensor  # (B, 4) int64: index into `JITTER` at each position; all 4 without jitter
    factors: Tensor  # (B, 4) float32: one for each of `JITTER`
    grey: Tensor  # (B,) bool
    blur: Tensor  # (B,) bool
    sigma: Tensor  # (B,) float32
    solarise: Tensor  # (B,) bool


def augment(
    images: Sequence[Tensor], views: Sequence[View], size: int, generator: Generator, of: int | None = None
) -> list[Tensor]:
    """Return one random view of each image by each law; nothing waits for the device.

    Args:
        images: for each of the laws uint8 (B, 3, H, W), on any device; those of laws of one size have one shape.
        views: the laws.
        size: the cell's image size in pixels.
        generator: on the CPU.
        of: images of the batch of all processes, of which these are this process's share: each image gets the view
            that it would get in the whole batch. None: these are all.

    The views are float32 (B, 3, pixels, pixels), normalised, channels_last, on the device of `images`.
    """
    draws = []
    for each, view in zip(images, views, strict=True):
        count, _, height, width = each.shape
        draws.append(draw(of or count, height, width, view, generator))
    if of is not None:
        rows = rank_slice(of)
        draws = [Draws(*(values[rows] for values in drawn)) for drawn in draws]
    make = in_pieces if images[0].device.type == "cpu" else together
    made: list[Tensor] = []
    for pixels, group in groupby(zip(images, draws, views, strict=True), key=lambda each: each[2].pixels(size)):
        of_size, drawn, _ = zip(*group, strict=True)
        made += make(of_size, drawn, pixels)
    return made


def in_pieces(images: Sequence[Tensor], draws: Sequence[Draws], size: int) -> list[Tensor]:
    """Make each view in pieces that stay in a core's cache, and that malloc serves without mapping fresh pages.

    That can be twice as fast as a whole batch; and to wake a second thread for each of the many operations takes
    longer than it helps.
    """
    pieces, views = math.ceil(len(images[0]) * 3 * size * size / PIECE), []
    with threads(1):
        for batch, drawn in zip(images, draws, strict=True):
            parts = zip(batch.chunk(pieces), *(values.chunk(pieces) for values in drawn), strict=True)
            views.append(torch.cat([apply(part, Draws(*values), size) for part, *values in parts]))
    return views


def together(images: Sequence[Tensor], draws: Sequence[Draws], size: int) -> list[Tensor]:
    """Make all views at once: on a GPU, time goes by the number of operations."""
    drawn = Draws(*map(torch.cat, zip(*draws, strict=True)))
    return list(apply(torch.cat(list(images)), drawn, size).chunk(len(draws)))


def normalise(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Return floats in [0, 1] (B, 3, H, W) standardised by a mean and deviation per channel, channels_last."""
    views = torch.empty_like(images, memory_format=torch.channels_last)
    for c, (centre, width) in enumerate(zip(mean, std, strict=True)):  # a tensor of them would have to be sent
        torch.sub(images[:, c] / width, centre / width, out=views[:, c])
    return views


def draw(count: int, height: int, width: int, view: View, generator: Generator) -> Draws:
    """Draw the same number of variates whatever the view, so that views stay comparable under one seed."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    def happens(probability: float) -> Tensor:
        return torch.rand(count, generator=generator) < probability

    if view.crop is None:
        boxes = torch.tensor([0, 0, height, width]).expand(count, 4)
    else:
        boxes = crop_boxes(count, height, width, view.crop, generator)
    flip, jitter, grey = happens(view.flip), happens(view.jitter), happens(view.grey)
    blur, solarise = happens(view.blur), happens(view.solarise)
    # Sorting independent uniforms is a uniform permutation.
    order = torch.rand(count, len(JITTER), generator=generator, dtype=torch.float64).argsort(1)
    order = order.masked_fill_(~jitter[:, None], len(JITTER))
    spans = [(max(0.0, 1 - x), 1 + x) for x in (view.brightness, view.contrast, view.saturation)]
    factors = torch.stack([uniform(*span) for span in (*spans, (-view.hue, view.hue))], dim=1)
    return Draws(boxes, flip, order, factors, grey, blur, uniform(*_SIGMA), solarise)


def apply(images: Tensor, draws: Draws, size: int) -> Tensor:
    """Return the views that `draws` describes; shapes and types as in `augment`."""
    chosen = [each.nonzero().flatten() for each in (draws.grey, draws.blur, draws.solarise)]
    gathers, values = _gathers(draws.order, draws.factors)
    gathers, grey, blur, solarise, within, values, sigma = send_together(
        [gathers, *chosen, spans(draws.boxes, draws.flip), values, draws.sigma[draws.blur]], images.device
    )
    views = _jitter(resized_crops(images, within, size), draws.order, gathers, values)
    if len(grey):
        views.index_copy_(0, grey, _grey(views.index_select(0, grey)).expand(-1, 3, -1, -1))
    if len(blur):
        weights = gaussian(sigma, size)
        views.index_copy_(0, blur, resample(views.index_select(0, blur), weights, weights))
    if len(solarise):
        some = views.index_select(0, solarise)
        # On the grid k/255 of uint8, 128/256 parts the same values as lightly's k >= 128.
        views.index_copy_(0, solarise, torch.where(some >= 0.5, 1 - some, some))
    return normalise(views)


def _gathers(order: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return what sorts a batch by operation at each position p of `order` (B, p), and restores its order at last.

    That is int64 (p + 1, B), each from the order that the position before left; and the factors, sorted so, (p, B).
    """
    host = torch.arange(len(order))
    place, gathers, values = host, [], []
    for operations in order.T:
        samples = operations.argsort(stable=True)
        gathers.append(place[samples])
        place = torch.empty_like(host).scatter_(0, samples, host)
        values.append(factors[samples, operations[samples].clamp(max=len(JITTER) - 1)])
    return torch.stack([*gathers, place]), torch.stack(values)


def _jitter(views: Tensor, order: Tensor, gathers: Tensor, values: Tensor) -> Tensor:
    """Apply the operation `order[:, p]` to each sample, for p = 0 ... 3; `views` is float32 (B, 3, h, w).

    Each position sorts the batch by operation, so that the samples of one operation are a slice to be
    changed in place, at the cost of one gather.
    """
    for operations, index, amount in zip(order.T, gathers, values[:, :, None, None, None], strict=False):
        views, start = views.index_select(0, index), 0
        for operation, count in zip(JITTER, operations.bincount(minlength=4).tolist(), strict=False):
            if count:
                operation(views[start : start + count], amount[start : start + count])
            start += count
    return views.index_select(0, gathers[-1])


def _grey(x: Tensor) -> Tensor:
    """Return the luminance (n, 1, h, w) with torchvision's weights."""
    red, green, blue = x.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def _brightness(x: Tensor, factor: Tensor) -> None:
    x.mul_(factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> None:
    mean = _grey(x).mean(dim=(2, 3), keepdim=True)
    x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> None:
    grey = _grey(x)
    x.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 1)


def _hue(x: Tensor, shift: Tensor) -> None:
    """Rotate the hue by `shift` turns at constant value and chroma, as through RGB -> HSV -> RGB.

    With hue in sixths of a turn, a channel is `high - chroma * clamp(distance - 1, 0, 1)`, the distance being
    that to 0 (red), 2 (green) or 4 (blue) around the circle of 6.
    """
    red, green, blue = x.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Half the circle by a formula without cases; the other half, where blue exceeds green, mirrors it.
    hue = (green - red).add_(blue - low).div_(chroma.clamp(min=1e-30)).add_(1)
    hue = hue.copysign_(green - blue).add_(shift[:, 0], alpha=6)
    hue.sub_((hue / 6).floor_(), alpha=6)
    # Red's 0 is also 6: its distance is 3 minus that to 3, which turns `high -` into `low +`.
    for channel, centre, base, sign in ((red, 3, low, 1), (green, 2, high, -1), (blue, 4, high, -1)):
        weight = (hue - centre).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(base, chroma, weight, value=sign, out=channel)


JITTER: tuple[Callable[[Tensor, Tensor], None], ...] = (_brightness, _contrast, _saturation, _hue)
