"""The images of a cell: the part of a dataset that it uses, opened on its device."""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from bench.core.errors import SealedError
from bench.core.paths import Paths
from bench.data import ImageSet, Split, balanced_part, image_size, load_dataset
from bench.data.loader import Source, open_source
from bench.grid.cell import Cell

REHEARSED_TEST_IMAGES = 8  # of which a rehearsal evaluates, however many there are


@dataclass(frozen=True)
class Images:
    """Training and test images of a cell, how many classes they have, pixels of a side, and the dataset's title.

    A trial has validation images, and its test images are sealed.
    """

    train: Source
    test: Source
    classes: int
    size: int
    title: str
    validation: Source | None = None

    @property
    def judging(self) -> Source:
        """The images that the cell is judged by."""
        return self.test if self.validation is None else self.validation


class Sealed:
    """The test images of a trial: whatever reads them raises SealedError."""

    def __getattr__(self, name: str) -> Any:
        raise SealedError(f"a trial that chooses a recipe has looked at the test set, at its {name}")

    def __len__(self) -> int:
        raise SealedError("a trial that chooses a recipe has counted the test set")


def open_images(cell: Cell, paths: Paths, device: torch.device, workers: int) -> Images:
    """Return the images that the cell uses. Raises UserError when they are missing or damaged."""
    data = part_of(load_dataset(cell.dataset, paths), cell, REHEARSED_TEST_IMAGES if paths.rehearsal else None)
    size = image_size(cell, paths)
    train = open_source(data.train, size, device, workers)
    if data.validation is None:
        return Images(train, open_source(data.test, size, device, workers), data.classes, size, data.title)
    validation, sealed = open_source(data.validation, size, device, workers), cast(Source, Sealed())
    return Images(train, sealed, data.classes, size, data.title, validation)


def part_of(data: ImageSet, cell: Cell, test_images: int | None = None) -> ImageSet:
    """Return the dataset with the part of its training images that the cell uses, and without a trial's test images.

    `test_images`: that many of the test images, from the start; None: all.
    """
    if test_images is not None:
        data = replace(data, test=Split(data.test.images[:test_images], data.test.labels[:test_images]))
    if cell.train_images is not None:
        data = replace(data, train=data.train.part(balanced_part(data.train.labels, cell.train_images)))
    if cell.validation is None:
        return data
    labels = data.train.labels
    held_out = balanced_part(labels, cell.validation.count(len(labels)), cell.validation.seed)
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    train, validation = map(data.train.part, (rest, held_out))
    return replace(data, train=train, validation=validation, test=cast(Split, Sealed()))
