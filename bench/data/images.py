"""The images of a cell: the part of a dataset that it uses, opened on its device."""

from dataclasses import dataclass, replace

import torch

from bench.core.paths import Places
from bench.data import ImageSet, Split, balanced_part, image_size, load_dataset
from bench.data.loader import Source, open_source
from bench.grid.cell import Cell

REHEARSED_TEST_IMAGES = 8  # of which a rehearsal evaluates, however many there are


@dataclass(frozen=True)
class Images:
    """Training and test images of a cell, how many classes they have, pixels of a side, and the dataset's title."""

    train: Source
    test: Source
    classes: int
    size: int
    title: str


def open_images(cell: Cell, places: Places, device: torch.device, workers: int) -> Images:
    """Return the images that the cell uses. Raises UserError when they are missing or damaged."""
    data = part_of(load_dataset(cell.dataset, places), cell, REHEARSED_TEST_IMAGES if places.rehearsal else None)
    size = image_size(cell, places)
    train, test = (open_source(split, size, device, workers) for split in (data.train, data.test))
    return Images(train, test, data.classes, size, data.title)


def part_of(data: ImageSet, cell: Cell, test_images: int | None = None) -> ImageSet:
    """Return the dataset with the part of its training images that the cell uses.

    `test_images`: that many of the test images, from the start; None: all.
    """
    if test_images is not None:
        data = replace(data, test=Split(data.test.images[:test_images], data.test.labels[:test_images]))
    if cell.train_images is None:
        return data
    index = balanced_part(data.train.labels, cell.train_images)
    return replace(data, train=Split(data.train.images[index], data.train.labels[index]))
