"""Where a step's images come from: a set that lives on the device, or one that is decoded when needed."""

import copy
import gc
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.core.distributed import share
from bench.core.errors import UserError, told
from bench.core.seeds import derive, generator
from bench.data import Split
from bench.data.augment import EvalView, View, augment_each, crop_boxes, normalise, resize, resized_crops
from bench.data.folder import PathList, read_image
from bench.data.sampler import Sampler

# How many images a plain batch has, of up to 32 pixels and of more. What a network makes of 512 larger ones leaves the
# caches: of 64 pixels, they take a ResNet-18 on a CPU 1.4 times as long as four batches of 128.
SMALL_IMAGES, LARGE_IMAGES = 512, 128

# What helps where processes that decode images fail, by what is said then. They hand on each batch as a file /torch_...
# in shared memory.
CURES = {
    "Too many open files|ancdata": "fewer --workers or a higher limit of open files (ulimit -n) help",
    "Bus error|/torch_|shared memory|No space left": "where shared memory is full, fewer --workers or a larger /dev/shm"
    " (docker run --shm-size) help",
    "ended with code|Cannot allocate|unavailable": "where memory is short, fewer --workers help",
}


class WorkerDied(Exception):
    """A process that decodes images died, or ran out of something that fewer of them need less of."""


class Source(Protocol):
    """Training or test images of a cell."""

    labels: Tensor

    def batches(self, views: tuple[View, ...], sampler: Sampler, steps: range) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yield, for each step, its indices (B,) and its views, each float32 (B, 3, size, size), on the device.

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
            images = self.images[index]
            draw, rows = generator(sampler.seed, "views", step), share(sampler.batch_size)
            yield index, augment_each([images] * len(views), views, self.size, draw, rows, sampler.batch_size)

    def eval_batches(self, view: EvalView, first: int = 0) -> Iterator[Tensor]:
        for images in torch.split(self.images[first:], SMALL_IMAGES if view.size <= 32 else LARGE_IMAGES):
            yield normalise(resize(images, view.size, view.shorter), view.mean, view.std)


class StreamingLoader:
    """Files that worker processes decode and crop; colour and the rest happen on the device.

    What a step sees depends on the seed and the step alone, not on the number of workers. Memory holds what is on
    its way to the next steps, and of each image no more than its path, its label and its place in an epoch's order.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int, device: torch.device, workers: int) -> None:
        self.paths = paths if isinstance(paths, PathList) else PathList(paths)
        self.labels, self.size = labels.to(device), size
        self.device, self.workers = device, workers

    def batches(self, views: tuple[View, ...], sampler: Sampler, steps: range) -> Iterator[tuple[Tensor, list[Tensor]]]:
        crops = _Crops(self.paths, views, self.size, sampler.seed)
        whole = [replace(view, crop=None) for view in views]
        loader = self._load(crops, batch_sampler=_Keys(sampler, steps))
        for step, batch in zip(steps, loader, strict=True):
            images = batch.to(self.device, non_blocking=True)
            draw = generator(sampler.seed, "views", step)
            rows, of = share(sampler.batch_size), sampler.batch_size
            index = sampler.own(step).to(self.device, non_blocking=True)
            yield index, augment_each(images.unbind(1), whole, self.size, draw, rows, of)

    def eval_batches(self, view: EvalView, first: int = 0) -> Iterator[Tensor]:
        rest = range(first, len(self.paths))
        for images in self._load(_Centres(self.paths, view), sampler=rest, batch_size=LARGE_IMAGES):
            yield normalise(images.to(self.device, non_blocking=True).float().div_(255), view.mean, view.std)

    def _load(self, dataset: Dataset[Tensor], **batching: Any) -> Iterator[Tensor]:
        loader = DataLoader(
            dataset,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_settle,
            **batching,
        )
        before = signal.getsignal(signal.SIGCHLD)
        if getattr(before, "__module__", "").startswith("torch."):  # of a loader that is not ours
            before = signal.SIG_DFL
        workers: Sequence[BaseProcess] = ()
        try:
            images = iter(loader)
            workers = getattr(images, "_workers", ())  # active_children() leaves out those that have ended already
            if threading.current_thread() is threading.main_thread():
                # Torch raises the death of a worker wherever this process happens to be, once for each child that ends,
                # be it in the midst of dealing with the first. Without its handler, asking for the next images does.
                signal.signal(signal.SIGCHLD, before)
            yield from images
        except UserError as error:  # of a worker, it comes with that process's traceback in its text
            raise UserError(str(error.args[0]).rpartition("UserError: ")[2].strip()) from None
        except (RuntimeError, OSError, EOFError) as error:
            if self.workers and (died := _died(error, workers)):
                raise died from error
            raise


def _died(error: Exception, workers: Sequence[BaseProcess]) -> WorkerDied | None:
    """Return what an error says of the processes that decode images, and what helps; None when it is another one."""
    ended = wait([worker.sentinel for worker in workers], timeout=1)  # its last words may come before its end
    for worker in workers:
        if worker.sentinel in ended:  # a process closes its files a moment before it has an exit code
            worker.join(1)
    code = next((worker.exitcode for worker in workers if worker.exitcode), None)
    if code:
        said = f"ended with code {code}{f' ({signal.strsignal(-code)})' if code < 0 else ''}"
    else:
        said = f"failed: {told(error)}"
    for sign, cure in CURES.items():
        if re.search(sign, said):
            return WorkerDied(f"a process that decodes images {said}; {cure}")
    return None


def _settle(worker: int) -> None:
    """Make a forked worker frugal, and deaf to what asks its parent to stop: that ends it when its step is done."""
    gc.freeze()  # its collector would write to, and so copy, all that it shares with its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """End this process when its parent terminates it; SIGTERM of anybody else is meant for the parent."""
    while True:
        if signal.sigwaitinfo([signal.SIGTERM]).si_pid == parent:
            os._exit(0)


class _Keys:
    """The (step, index) of each image of each step, made when the step is due: no epoch's plan is ever in memory."""

    def __init__(self, sampler: Sampler, steps: range) -> None:
        self.sampler, self.steps = copy.copy(sampler), steps  # a copy: it runs ahead of the steps, maybe by an epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield [(step, index) for index in self.sampler.own(step).tolist()]

    def __len__(self) -> int:
        return len(self.steps)


class _Crops(Dataset[Tensor]):
    """Random resized crops of files, uint8 (views, 3, size, size), by (step, index)."""

    def __init__(self, paths: PathList, views: tuple[View, ...], size: int, seed: int) -> None:
        self.paths, self.views, self.size, self.seed = paths, views, size, seed

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        step, index = key
        image = torch.from_numpy(read_image(self.paths[index]))
        draw = torch.Generator().manual_seed(derive(self.seed, "crops", step, index))
        crops = []
        for view in self.views:
            assert view.crop is not None
            box = crop_boxes(1, image.shape[1], image.shape[2], view.crop, draw)
            top, left, height, width = box[0].tolist()
            inside = image[None, :, top : top + height, left : left + width]  # far fewer pixels to resize
            crops.append(resized_crops(inside, box * torch.tensor([0, 0, 1, 1]), self.size)[0])
        return torch.stack(crops).mul_(255).round_().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.paths)


class _Centres(Dataset[Tensor]):
    """Un-augmented files, uint8 (3, size, size)."""

    def __init__(self, paths: PathList, view: EvalView) -> None:
        self.paths, self.view = paths, view

    def __getitem__(self, index: int) -> Tensor:
        image = torch.from_numpy(read_image(self.paths[index]))
        return resize(image[None], self.view.size, self.view.shorter)[0].mul_(255).round_().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.paths)
