"""Batched, per-sample random views of images, computed where the images are.

The law is that of torchvision's `RandomResizedCrop`, `RandomHorizontalFlip`, `ColorJitter` and
`RandomGrayscale`, then blur and solarisation, in the order of BYOL (Grill et al. 2020, appendix B) and of
lightly's `BYOLView1Transform`. Two things differ from a PIL pipeline: all maths is float32 on [0, 1], with
no rounding to uint8 in between, and the blur is a true Gaussian (see `_gaussian`).

Every random number comes from a CPU generator, before any image is touched. A batch thus meets the same
augmentation on every device, and the host knows each index set without waiting for the device.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from bench.core.device import threads
from bench.grid.schema import Precision

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_LOG_RATIO = math.log(4 / 3)
_TRIES = 10
_SIGMA = (0.1, 2.0)
_PIECE = 2**18  # values of an augmented piece on the CPU: 1 MiB
_REACH = 16  # pixels beyond the border that the blur can see: 8 of the largest sigma, exp(-32) of its peak


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


@dataclass(frozen=True)
class EvalView:
    """How a frozen network is shown images: their centres, un-augmented and normalised."""

    size: int  # pixels of a side
    mean: Sequence[float] = MEAN  # of each channel
    std: Sequence[float] = STD
    precision: Precision = "fp32"  # in which the network computes
    shorter: int | None = None  # pixels that the shorter side is resized to before the centre is taken; None: `size`


class _Draws(NamedTuple):
    """What chance decided for B samples; tensors on the CPU."""

    boxes: Tensor  # (B, 4) int64: top, left, height, width
    flip: Tensor  # (B,) bool
    order: Tensor  # (B, 4) int64: index into `_JITTER` at each position; all 4 without jitter
    factors: Tensor  # (B, 4) float32: one for each of `_JITTER`
    grey: Tensor  # (B,) bool
    blur: Tensor  # (B,) bool
    sigma: Tensor  # (B,) float32
    solarise: Tensor  # (B,) bool


def augment(
    images: Tensor, view: View, size: int, generator: Generator, rows: slice | None = None, of: int | None = None
) -> Tensor:
    """One random view of each image, independently.

    `images` is uint8 (B, 3, H, W) on any device and `generator` is a CPU generator; the result is float32
    (B, 3, size, size), normalised, channels_last, on the device of `images`. Nothing waits for the device. When the
    images are the `rows` of a batch of `of`, they get the views that they would get in the whole batch.
    """
    return augment_each([images], [view], size, generator, rows, of)[0]


def augment_each(
    images: Sequence[Tensor],
    views: Sequence[View],
    size: int,
    generator: Generator,
    rows: slice | None = None,
    of: int | None = None,
) -> list[Tensor]:
    """For each of several views, in their order, what `augment` makes of its images; all have one shape."""
    count, _, height, width = images[0].shape
    draws = [_draw(of or count, height, width, view, generator) for view in views]
    if rows is not None:
        draws = [_Draws(*(values[rows] for values in each)) for each in draws]
    make = _in_pieces if images[0].device.type == "cpu" else _together
    return make(images, draws, size)


def _in_pieces(images: Sequence[Tensor], draws: Sequence[_Draws], size: int) -> list[Tensor]:
    """Make each view in pieces that stay in a core's cache, and that malloc serves without mapping fresh pages.

    That can be twice as fast as a whole batch; and to wake a second thread for each of the many operations takes
    longer than it helps.
    """
    pieces, views = math.ceil(len(images[0]) * 3 * size * size / _PIECE), []
    with threads(1):
        for batch, drawn in zip(images, draws, strict=True):
            parts = zip(batch.chunk(pieces), *(values.chunk(pieces) for values in drawn), strict=True)
            views.append(torch.cat([_apply(part, _Draws(*values), size) for part, *values in parts]))
    return views


def _together(images: Sequence[Tensor], draws: Sequence[_Draws], size: int) -> list[Tensor]:
    """Make all views at once: on a GPU, time goes by the number of operations."""
    drawn = _Draws(*map(torch.cat, zip(*draws, strict=True)))
    return list(_apply(torch.cat(list(images)), drawn, size).chunk(len(draws)))


def resize(images: Tensor, size: int, shorter: int | None = None) -> Tensor:
    """The view for evaluation: shorter side to `shorter` pixels (None: `size`), then the centre square of `size`.

    uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 1]; torchvision's `Resize` (antialiased bilinear)
    and `CenterCrop`, without the rounding to uint8 of their PIL versions.
    """
    shorter = shorter or size
    if images.shape[2:] == (size, size) and shorter == size:
        return images.float().div_(255)
    weights = []
    for pixels in images.shape[2:]:
        length = shorter * pixels // min(images.shape[2:])
        start = round((length - size) / 2)
        begin, extent = _send(torch.tensor([[0.0], [pixels]]), images.device)
        axis = _interpolation(begin, extent, pixels, length)
        weights.append(axis[:, start : start + size].expand(len(images), -1, -1))
    return _resample(images.float().div_(255), *weights)


def normalise(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Floats in [0, 1] (B, 3, H, W) standardised by a mean and deviation per channel, channels_last."""
    views = torch.empty_like(images, memory_format=torch.channels_last)
    for c, (centre, width) in enumerate(zip(mean, std, strict=True)):  # a tensor of them would have to be sent
        torch.sub(images[:, c] / width, centre / width, out=views[:, c])
    return views


def _draw(count: int, height: int, width: int, view: View, generator: Generator) -> _Draws:
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
    order = torch.rand(count, len(_JITTER), generator=generator, dtype=torch.float64).argsort(1)
    order = order.masked_fill_(~jitter[:, None], len(_JITTER))
    spans = [(max(0.0, 1 - x), 1 + x) for x in (view.brightness, view.contrast, view.saturation)]
    factors = torch.stack([uniform(*span) for span in (*spans, (-view.hue, view.hue))], dim=1)
    return _Draws(boxes, flip, order, factors, grey, blur, uniform(*_SIGMA), solarise)


def crop_boxes(count: int, height: int, width: int, share: tuple[float, float], generator: Generator) -> Tensor:
    """Crop boxes (count, 4) int64 (top, left, height, width) by torchvision's `RandomResizedCrop.get_params`.

    The share of the area is uniform, the aspect ratio log-uniform in (3/4, 4/3). The first of ten tries that fits,
    or else the largest centred box with an allowed aspect ratio.
    """
    u = torch.rand(2, count, _TRIES, generator=generator, dtype=torch.float64)
    area = (share[0] + (share[1] - share[0]) * u[0]).mul_(height * width)
    ratio = ((2 * u[1] - 1) * _LOG_RATIO).exp_()
    sides = torch.stack([(area / ratio).sqrt_().round_(), (area * ratio).sqrt_().round_()])
    limit = torch.tensor([height, width], dtype=torch.float64)
    fits = ((sides > 0) & (sides <= limit[:, None, None])).all(0)
    first = fits.byte().argmax(1)  # argmax returns the first maximum
    side = sides[:, torch.arange(count), first].T
    largest = torch.tensor([min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))])
    place = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    place = place.mul_(limit - side + 1).floor_()
    any_fits = fits.any(1, keepdim=True)
    side = torch.where(any_fits, side, largest)
    place = torch.where(any_fits, place, (limit - largest).div_(2).floor_())
    return torch.cat([place, side], dim=1).long()


def _apply(images: Tensor, draws: _Draws, size: int) -> Tensor:
    """The view that `draws` describes; shapes and types as in `augment`."""
    device = images.device
    views = resized_crops(images, draws.boxes, size, draws.flip)
    views = _jitter(views, draws.order, draws.factors)
    if len(index := _send(draws.grey.nonzero().flatten(), device)):
        views.index_copy_(0, index, _grey(views.index_select(0, index)).expand(-1, 3, -1, -1))
    if len(index := _send(draws.blur.nonzero().flatten(), device)):
        weights = _gaussian(_send(draws.sigma[draws.blur], device), size)
        views.index_copy_(0, index, _resample(views.index_select(0, index), weights, weights))
    if len(index := _send(draws.solarise.nonzero().flatten(), device)):
        chosen = views.index_select(0, index)
        # On the grid k/255 of uint8, 128/256 parts the same values as lightly's k >= 128.
        views.index_copy_(0, index, torch.where(chosen >= 0.5, 1 - chosen, chosen))
    return normalise(views)


def resized_crops(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Each image's box, resized to `size` pixels and mirrored where `flip` (B,) says so.

    uint8 (B, 3, H, W) and boxes (B, 4) int64 on the CPU to float32 (B, 3, size, size) in [0, 1].
    """
    height, width = images.shape[2:]
    top, left, rows, columns = boxes.T
    if flip is not None:  # a flip is a box read from its right end, with a negative width
        left, columns = left + columns * flip, columns * (1 - 2 * flip.long())
    y, dy, x, dx = _send(torch.stack([top, rows, left, columns]).float(), images.device)
    down, across = _interpolation(y, dy, height, size), _interpolation(x, dx, width, size)
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    return _resample(pixels, down.div_(255), across)


def _send(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; CUDA needs pinned memory to copy without making the host wait."""
    return (values.pin_memory() if device.type == "cuda" and values.numel() else values).to(device, non_blocking=True)


def _resample(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """`down @ images @ across^T`: (B, 3, H, W) by (B, h, H) and (B, w, W) to (B, 3, h, w), float32."""
    half = torch.bmm(images.flatten(1, 2), across.mT).view(*images.shape[:3], -1)
    return torch.matmul(down[:, None], half)


def _interpolation(begin: Tensor, extent: Tensor, pixels: int, size: int) -> Tensor:
    """Weights (B, size, pixels) that resize the span from `begin` to `begin + extent` to `size` pixels.

    PIL's antialiased bilinear filter: a triangle whose half-width is the larger of an input and an output
    pixel, cut at the ends of the span and renormalised. `begin` and `extent` are integers in float32 (B,); a
    negative extent reads backwards.
    """
    begin, extent = begin[:, None], extent[:, None]
    pixel = torch.arange(pixels, device=begin.device) + 0.5 - begin
    outside = (pixel * extent.sign() < 0) | (pixel.abs() > extent.abs())
    # Distances in units of 1 / (2 size) input pixel are integers: exact in float32, so that one division
    # is the only rounding. Infinitely far pixels get no weight.
    source = (pixel * (2 * size)).masked_fill_(outside, math.inf)
    target = (2 * torch.arange(size, device=begin.device) + 1) * extent
    scale = extent.abs().clamp(min=size).mul_(-2)
    weights = (source[:, None] - target[:, :, None]).abs_().div_(scale[:, :, None]).add_(1).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))


def _gaussian(sigma: Tensor, size: int) -> Tensor:
    """Weights (n, size, size) of a Gaussian blur with one `sigma` (n,) each and replicated edges, float32.

    lightly blurs by PIL's `GaussianBlur`, three box filters of fractional width that replicate the edges
    anew each time. On photographs at 32x32 and sigma in (0.1, 2) the two differ by 0.002 on average; at most
    by 0.05 eight pixels and more inside the border (sigma 0.32) and by 0.14 on it (sigma 2), of a range of 1.
    """
    device = sigma.device
    target = torch.arange(size, device=device)[:, None]
    source = torch.arange(-_REACH, size + _REACH, device=device)
    weights = (target - source).square().mul(-0.5 / sigma.square()[:, None, None]).exp_()
    weights.div_(weights.sum(2, keepdim=True))
    within = weights[:, :, _REACH:-_REACH]
    within[:, :, 0] += weights[:, :, :_REACH].sum(2)
    within[:, :, -1] += weights[:, :, -_REACH:].sum(2)
    return within


def _jitter(views: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Apply the operation `order[:, p]` to each sample, for p = 0 ... 3; `views` is float32 (B, 3, h, w).

    Each position sorts the batch by operation, so that the samples of one operation are a slice to be
    changed in place. Sorting costs one gather, from the order that the position before left.
    """
    host = torch.arange(len(order))
    place, gathers, values = host, [], []
    for operations in order.T:
        samples = operations.argsort(stable=True)
        gathers.append(place[samples])
        place = torch.empty_like(host).scatter_(0, samples, host)
        values.append(factors[samples, operations[samples].clamp(max=len(_JITTER) - 1)])
    indices = _send(torch.stack([*gathers, place]), views.device)
    amounts = _send(torch.stack(values), views.device)[:, :, None, None, None]
    for operations, index, amount in zip(order.T, indices, amounts, strict=False):
        views, start = views.index_select(0, index), 0
        for operation, count in zip(_JITTER, operations.bincount(minlength=4).tolist(), strict=False):
            if count:
                operation(views[start : start + count], amount[start : start + count])
            start += count
    return views.index_select(0, indices[-1])


def _grey(x: Tensor) -> Tensor:
    """Luminance (n, 1, h, w) with torchvision's weights."""
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


_JITTER: tuple[Callable[[Tensor, Tensor], None], ...] = (_brightness, _contrast, _saturation, _hue)
