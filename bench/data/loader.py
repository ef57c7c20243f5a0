"""Where a step's images come from: a set that lives on the device, or one that is decoded when needed."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bench.core.seeds import derive, generator
from bench.data.augment import EvalView, View, augment, normalise
from bench.data.dataset import Split
from bench.data.decode import read_image
from bench.data.resample import crop_boxes, resize, resized_crops, spans
from bench.data.sampler import Sampler
from bench.data.workers import decoded

T = TypeVar("T")

# Images of an evaluation's batch, of up to 32 pixels and of more. What a network makes of 512 larger ones leaves the
# caches: of 64 pixels, they take a ResNet-18 on a CPU 1.4 times as long as four batches of 128.
SMALL_IMAGES, LARGE_IMAGES = 512, 128


class Source(Protocol):
    """Training or test images of a cell."""

    labels: Tensor

    def batches(self, views: tuple[View, ...], sampler: Sampler, steps: range) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yield, for each step, its indices (B,) and its views, float32 (B, 3, pixels, pixels), on the device.

        Of several processes, each yields its share of the step's images.
        """
        ...

    def eval_batches(self, view: EvalView, first: int = 0) -> Iterator[Tensor]:
        """Yield the images from `first` on, un-augmented, in batches float32 (b, 3, view.size, view.size)."""
        ...


def open_source(split: Split, size: int, device: torch.device, workers: int) -> Source:
    """Return the source of a split's images at `size` pixels."""
    if isinstance(split.images, np.ndarray):
        return InMemoryLoader(torch.from_numpy(split.images), torch.from_numpy(split.labels), size, device)
    return StreamingLoader(split.images, torch.from_numpy(split.labels), size, device, workers)


class InMemoryLoader:
    """The whole set as uint8 on the device; views are made there, a batch at a time."""

    def __init__(self, images: Tensor, labels: Tensor, size: int, device: torch.device) -> None:
        self.images, self.labels, self.size = images.to(device), labels.to(device), size

    def batches(self, views: tuple[View, ...], sampler: Sampler, steps: range) -> Iterator[tuple[Tensor, list[Tensor]]]:
        for step in steps:
            index = sampler.own(step).to(self.images.device, non_blocking=True)
            images = [self.images[index]] * len(views)
            yield index, augment(images, views, self.size, generator(sampler.seed, "views", step), sampler.batch_size)

    def eval_batches(self, view: EvalView, first: int = 0) -> Iterator[Tensor]:
        for images in torch.split(self.images[first:], SMALL_IMAGES if view.size <= 32 else LARGE_IMAGES):
            yield normalise(resize(images, view.size, view.shorter), view.mean, view.std)


class StreamingLoader:
    """Files that worker processes decode and crop; colour and the rest happen on the device.

    What a step sees depends on the seed and the step alone, not on the number of workers. Memory holds what is on
    its way to the next steps, and of each image no more than its path, its label and its place in an epoch's order.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int, device: torch.device, workers: int) -> None:
        self.paths, self.labels, self.size = paths, labels.to(device), size
        self.device, self.workers = device, workers

    def batches(self, views: tuple[View, ...], sampler: Sampler, steps: range) -> Iterator[tuple[Tensor, list[Tensor]]]:
        crops = _Crops(self.paths, views, self.size, sampler.seed)
        whole = [replace(view, crop=None) for view in views]
        for step, batch in zip(steps, self._load(crops, batch_sampler=_keys(sampler, steps)), strict=True):
            images = [each.to(self.device, non_blocking=True) for each in batch]
            index = sampler.own(step).to(self.device, non_blocking=True)
            draw = generator(sampler.seed, "views", step)
            yield index, augment(images, whole, self.size, draw, sampler.batch_size)

    def eval_batches(self, view: EvalView, first: int = 0) -> Iterator[Tensor]:
        rest = range(first, len(self.paths))
        for images in self._load(_Centres(self.paths, view), sampler=rest, batch_size=LARGE_IMAGES):
            there = images.to(self.device, non_blocking=True)
            yield normalise(there.float().div_(255), view.mean, view.std)

    def _load(self, dataset: Dataset[T], **batching: Any) -> Iterator[T]:
        """Yield batches of a dataset on the host."""
        return decoded(dataset, self.workers, pin_memory=self.device.type == "cuda", **batching)


def _keys(sampler: Sampler, steps: range) -> Iterator[list[tuple[int, int]]]:
    """Yield the (step, index) of each image of a step, for each step when it is due: no epoch's plan is in memory."""
    ahead = copy.copy(sampler)  # of the steps that are taken, maybe by an epoch
    for step in steps:
        yield [(step, index) for index in ahead.own(step).tolist()]


class _Crops(Dataset[list[Tensor]]):
    """Random resized crops of files, for each view uint8 (3, pixels, pixels), by (step, index)."""

    def __init__(self, paths: Sequence[Path], views: tuple[View, ...], size: int, seed: int) -> None:
        self.paths, self.views, self.size, self.seed = paths, views, size, seed

    def __getitem__(self, key: tuple[int, int]) -> list[Tensor]:
        step, index = key
        image = torch.from_numpy(read_image(self.paths[index]))
        draw = torch.Generator().manual_seed(derive(self.seed, "crops", step, index))
        crops = []
        for view in self.views:
            assert view.crop is not None
            box = crop_boxes(1, image.shape[1], image.shape[2], view.crop, draw)
            top, left, height, width = box[0].tolist()
            inside = image[None, :, top : top + height, left : left + width]  # far fewer pixels to resize
            crop = resized_crops(inside, spans(box * torch.tensor([0, 0, 1, 1])), view.pixels(self.size))[0]
            crops.append(crop.mul_(255).round_().to(torch.uint8))
        return crops


class _Centres(Dataset[Tensor]):
    """Un-augmented files, uint8 (3, size, size)."""

    def __init__(self, paths: Sequence[Path], view: EvalView) -> None:
        self.paths, self.view = paths, view

    def __getitem__(self, index: int) -> Tensor:
        image = torch.from_numpy(read_image(self.paths[index]))
        return resize(image[None], self.view.size, self.view.shorter)[0].mul_(255).round_().to(torch.uint8)
