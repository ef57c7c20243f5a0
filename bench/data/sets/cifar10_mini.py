"""A part of CIFAR-10 that comes with the package."""

import tarfile
from pathlib import Path, PurePosixPath

import numpy as np

from bench.data.dataset import DatasetInfo, Split, datasets
from bench.data.decode import read_image

ARCHIVE = Path(__file__).parents[1] / "shipped" / "cifar10_mini.tar.xz"


@datasets.register("cifar10_mini")
class Cifar10Mini(DatasetInfo):
    """2,500 + 1,000 images of CIFAR-10 (Krizhevsky 2009), class-balanced, as JPEG files that come with the package."""

    title, short, classes, image_size = "CIFAR-10 mini (JPEG)", "CF10MINI", 10, 32
    train_images, test_images = 2500, 1000
    hint = "it comes with the package"

    def files(self, root: Path) -> list[Path]:
        return [ARCHIVE]

    def read(self, root: Path) -> tuple[Split, Split]:
        with tarfile.open(ARCHIVE) as tar:
            names = [PurePosixPath(member.name).parts for member in tar]
            images = np.stack([read_image(ARCHIVE / member.name, 32, tar.extractfile(member)) for member in tar])
        labels = np.unique([label for _, label, _ in names], return_inverse=True)[1].astype(np.int64)
        train = np.array([split == "train" for split, _, _ in names])
        return Split(images[train], labels[train]), Split(images[~train], labels[~train])
