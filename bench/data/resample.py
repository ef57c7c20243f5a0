"""Crops, sizes and blur of batches of images, each image by numbers of its own, as products with matrices."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

_LOG_RATIO = math.log(4 / 3)
_TRIES = 10
_REACH = 16  # pixels beyond the border that the blur can see: 8 of the largest sigma, exp(-32) of its peak


def crop_boxes(count: int, height: int, width: int, share: tuple[float, float], generator: Generator) -> Tensor:
    """Return crop boxes (count, 4) int64 (top, left, height, width) by torchvision's `RandomResizedCrop.get_params`.

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


def resize(images: Tensor, size: int, shorter: int | None = None) -> Tensor:
    """Return the view for evaluation: the shorter side at `shorter` pixels (None: `size`), then the centre of `size`.

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
        begin, extent = send(torch.tensor([[0.0], [pixels]]), images.device)
        axis = interpolation(begin, extent, pixels, length)
        weights.append(axis[:, start : start + size].expand(len(images), -1, -1))
    return resample(images.float().div_(255), *weights)


def spans(boxes: Tensor, flip: Tensor | bool = False) -> Tensor:
    """Return the y, height, x and width (4, B) float32 of boxes (B, 4) int64, mirrored where `flip` (B,) says so.

    A flip is a box read from its right end, with a negative width.
    """
    top, left, rows, columns = boxes.T
    return torch.stack([top, rows, left + columns * flip, columns * (1 - 2 * flip)]).float()


def resized_crops(images: Tensor, within: Tensor, size: int) -> Tensor:
    """Return each image's box, by its `spans` on the same device, resized to `size` pixels.

    uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 1].
    """
    height, width = images.shape[2:]
    y, dy, x, dx = within
    down, across = interpolation(y, dy, height, size), interpolation(x, dx, width, size)
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    return resample(pixels, down.div_(255), across)


def resample(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return `down @ images @ across^T`: (B, 3, H, W) by (B, h, H) and (B, w, W) to (B, 3, h, w), float32."""
    half = torch.bmm(images.flatten(1, 2), across.mT).view(*images.shape[:3], -1)
    return torch.matmul(down[:, None], half)


def interpolation(begin: Tensor, extent: Tensor, pixels: int, size: int) -> Tensor:
    """Return weights (B, size, pixels) that resize the span from `begin` to `begin + extent` to `size` pixels.

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


def gaussian(sigma: Tensor, size: int) -> Tensor:
    """Return weights (n, size, size) of a Gaussian blur with one `sigma` (n,) each and replicated edges, float32.

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


def send(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on `device`; CUDA needs pinned memory to copy without making the host wait."""
    return (values.pin_memory() if device.type == "cuda" and values.numel() else values).to(device, non_blocking=True)


def send_together(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors of the host on `device`, sent in one copy; those with the widest elements come first."""
    parts = [each.contiguous().flatten().view(torch.uint8) for each in values]
    sent = torch.split(send(torch.cat(parts), device), [len(part) for part in parts])
    return [part.view(each.dtype).view(each.shape) for part, each in zip(sent, values, strict=True)]
