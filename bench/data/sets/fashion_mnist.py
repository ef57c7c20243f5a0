"""Fashion-MNIST: its four IDX files, gzipped or not, or a folder of images."""

import gzip
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.core.errors import DamagedFile
from bench.data import folder
from bench.data.dataset import DatasetInfo, Images, Split, datasets, grey_to_rgb
from bench.data.decode import each

MAX_IDX = 100_000_000  # bytes, twice those of the training images


@datasets.register("fashion_mnist")
class FashionMnist(DatasetInfo):
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28x28 pixels, gzipped IDX or not."""

    title, short, classes, image_size, lossless = "Fashion-MNIST", "FMNIST", 10, 28, True
    train_images, test_images = 60_000, 10_000
    hint = "`prepare` downloads it, or put its four IDX files into fashion_mnist/"
    torchvision = "FashionMNIST"
    stems: ClassVar[tuple[str, ...]] = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )

    def originals(self, root: Path) -> list[Path]:
        for base in (root / "FashionMNIST" / "raw", root / self.name):
            paths = [base / f"{stem}{suffix}" for stem in self.stems for suffix in (".gz", "")]
            # Of two, the one not gzipped.
            by_name = {path.stem: path for path in paths if folder.kind(path) is not None}
            if len(by_name) == len(self.stems):
                return list(by_name.values())
        return []

    def read_originals(self, paths: list[Path]) -> tuple[Split, Split]:
        arrays = list(each(paths, read_idx))
        return _split(paths[:2], arrays[:2]), _split(paths[2:], arrays[2:])


def _split(paths: list[Path], arrays: list[Images]) -> Split:
    """Return the split that a file of images and one of labels hold. Raises DamagedFile."""
    (images_path, labels_path), (images, labels) = paths, arrays
    if images.shape[1:] != (28, 28):
        raise DamagedFile(f"{images_path}: shape {images.shape} where (N, 28, 28) is expected")
    if labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
        raise DamagedFile(f"{labels_path}: not {len(images):,} labels from 0 to 9, as {images_path} needs")
    return Split(grey_to_rgb(images), labels.astype(np.int64))


def read_idx(path: Path) -> Images:
    """Return the array of an IDX file of bytes. Raises DamagedFile.

    The file is two zero bytes, type 8, the number of dimensions, each of these as big-endian int32, and the values.
    """
    try:
        with path.open("rb") as plain, gzip.open(path) as packed:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            data = (packed if zipped else plain).read(MAX_IDX + 1)
        if len(data) > MAX_IDX:
            raise ValueError(f"over {MAX_IDX:,} bytes")  # noqa: TRY301
        shape = np.frombuffer(data, dtype=">i4", count=data[3], offset=4)
        array = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3]).reshape(shape)
        if array.shape != tuple(shape):  # a size of -1 would be the one that fits
            raise ValueError(f"shape {tuple(shape)}")  # noqa: TRY301
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DamagedFile(f"{path}: not a readable IDX file: {error}") from error
    if data[:3] != b"\0\0\x08":
        raise DamagedFile(f"{path}: not an IDX file of bytes")
    return array
