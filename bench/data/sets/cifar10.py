"""CIFAR-10: the archive of its authors, or a folder of images."""

import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.core.files import read_bytes
from bench.data import folder
from bench.data.dataset import DatasetInfo, Images, Labels, Split, datasets
from bench.data.decode import each

MAX_BATCH = 200_000_000  # bytes


@datasets.register("cifar10")
class Cifar10(DatasetInfo):
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32x32 pixels.

    The archive holds pickles, which may run code: only the files that were published are loaded. A part of the images,
    or a copy, is a folder of images.
    """

    title, short, classes, image_size, lossless = "CIFAR-10", "CF10", 10, 32, True
    train_images, test_images = 50_000, 10_000
    hint = "`prepare` downloads it, or unpack it as cifar10/{train,test}/<class>/*"
    torchvision = "CIFAR10"
    archive: ClassVar[str] = "cifar-10-batches-py"
    label_key: ClassVar[bytes] = b"labels"
    known: ClassVar[dict[str, str]] = {  # the archive's files and their MD5; the last one has the test images
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }

    def originals(self, root: Path) -> list[Path]:
        paths = [root / self.archive / name for name in self.known]
        return paths if all(folder.kind(path) is not None for path in paths) else []

    def read_originals(self, paths: list[Path]) -> tuple[Split, Split]:
        *train, (images, labels) = each(paths, self._read_batch)
        parts = [np.concatenate(part) for part in zip(*train, strict=True)]
        return Split(parts[0], parts[1]), Split(images, labels)

    def _read_batch(self, path: Path) -> tuple[Images, Labels]:
        """Return the images and labels of a file of the archive. Raises DamagedFile when it is another one."""
        batch = pickle.loads(read_bytes(path, MAX_BATCH, self.known[path.name]), encoding="bytes")
        return batch[b"data"].reshape(-1, 3, 32, 32), np.array(batch[self.label_key], dtype=np.int64)
