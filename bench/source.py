"""Where a step's images come from: a set that lives on the device, or one that is decoded when needed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.budget import epoch_indices, steps_per_epoch
from bench.datasets import Split
from bench.datasets.folder import read_image
from bench.seeds import derive, generator
from bench.views import MEAN, STD, View, augment, crop_boxes, normalise, resize, resized_crops


class Order:
    """Which images each step of a cell sees: a function of the seed, the budget and the step alone."""

    def __init__(self, count: int, budget: float, batch_size: int, seed: int) -> None:
        self.count, self.budget, self.batch_size, self.seed = count, budget, batch_size, seed
        self.steps_per_epoch = steps_per_epoch(count, budget, batch_size)
        self._epoch, self._indices = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Return the indices int64 (batch_size,) of a step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._indices = epoch, epoch_indices(self.count, self.budget, epoch, self.seed)
        return self._indices[batch * self.batch_size : (batch + 1) * self.batch_size]


class Source(Protocol):
    """Training or test images of a cell."""

    labels: Tensor

    def batches(self, views: tuple[View, ...], order: Order, steps: range) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yield, for each step, its indices (B,) and its views, each float32 (B, 3, size, size), on the device."""
        ...

    def plain(self, size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Iterator[Tensor]:
        """Yield all images in order, un-augmented and normalised, in batches float32 (b, 3, size, size)."""
        ...


def open_source(split: Split, size: int, device: torch.device, workers: int) -> Source:
    """Return the source of a split's images at `size` pixels."""
    if isinstance(split.images, list):
        return Streaming(split.images, torch.from_numpy(split.labels), size, device, workers)
    return Resident(torch.from_numpy(split.images), torch.from_numpy(split.labels), size, device)


class Resident:
    """The whole set as uint8 on the device; views are made there, a batch at a time."""

    def __init__(self, images: Tensor, labels: Tensor, size: int, device: torch.device) -> None:
        self.images, self.labels, self.size = images.to(device), labels.to(device), size

    def batches(self, views: tuple[View, ...], order: Order, steps: range) -> Iterator[tuple[Tensor, list[Tensor]]]:
        for step in steps:
            index = order(step).to(self.images.device, non_blocking=True)
            images = self.images[index]
            draw = generator(order.seed, "views", step)
            yield index, [augment(images, view, self.size, draw) for view in views]

    def plain(self, size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Iterator[Tensor]:
        for images in torch.split(self.images, 512):
            yield normalise(resize(images, size), mean, std)


class Streaming:
    """Files that worker processes decode and crop; colour and the rest happen on the device.

    What a step sees depends on the seed and the step alone, not on the number of workers.
    """

    def __init__(self, paths: list[Path], labels: Tensor, size: int, device: torch.device, workers: int) -> None:
        self.paths, self.labels, self.size = paths, labels.to(device), size
        self.device, self.workers = device, workers

    def batches(self, views: tuple[View, ...], order: Order, steps: range) -> Iterator[tuple[Tensor, list[Tensor]]]:
        crops = _Crops(self.paths, views, self.size, order.seed)
        plan = [[(step, index) for index in order(step).tolist()] for step in steps]
        whole = [replace(view, crop=None) for view in views]
        loader = self._loader(crops, batch_sampler=plan)
        for step, batch in zip(steps, loader, strict=True):
            images = batch.to(self.device, non_blocking=True)
            draw = generator(order.seed, "views", step)
            index = order(step).to(self.device, non_blocking=True)
            yield index, [augment(images[:, i], view, self.size, draw) for i, view in enumerate(whole)]

    def plain(self, size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Iterator[Tensor]:
        for images in self._loader(_Centres(self.paths, size), batch_size=256):
            yield normalise(images.to(self.device, non_blocking=True).float().div_(255), mean, std)

    def _loader(self, dataset: Dataset[Tensor], **batching: Any) -> DataLoader[Tensor]:
        return DataLoader(dataset, num_workers=self.workers, pin_memory=self.device.type == "cuda", **batching)


class _Crops(Dataset[Tensor]):
    """Random resized crops of files, uint8 (views, 3, size, size), by (step, index)."""

    def __init__(self, paths: list[Path], views: tuple[View, ...], size: int, seed: int) -> None:
        self.paths, self.views, self.size, self.seed = paths, views, size, seed

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        step, index = key
        image = torch.from_numpy(read_image(self.paths[index]))
        draw = torch.Generator().manual_seed(derive(self.seed, "crops", step, index))
        crops = []
        for view in self.views:
            assert view.crop is not None
            box = crop_boxes(1, image.shape[1], image.shape[2], view.crop, draw)
            crops.append(resized_crops(image[None], box, self.size)[0])
        return torch.stack(crops).mul_(255).round_().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.paths)


class _Centres(Dataset[Tensor]):
    """Un-augmented files, uint8 (3, size, size)."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __getitem__(self, index: int) -> Tensor:
        image = torch.from_numpy(read_image(self.paths[index]))
        return resize(image[None], self.size)[0].mul_(255).round_().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.paths)
