"""The datasets that are known by name."""

import gzip
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.datasets.base import DatasetInfo, Images, Split, datasets
from bench.errors import MissingError, UserError


@datasets.register("digits")
class Digits(DatasetInfo):
    """1,797 handwritten digits of 8x8 pixels that scikit-learn ships; every fifth is for test."""

    title, short, classes, image_size, train_images = "Digits", "DIGITS", 10, 8, 1437
    hint = "it comes with scikit-learn"

    def files(self, root: Path) -> list[Path]:
        return []

    def here(self, root: Path) -> bool:
        return True

    def fetch(self, root: Path) -> None:
        pass

    def read(self, root: Path) -> tuple[Split, Split]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        labels = bunch.target.astype(np.int64)
        test = np.arange(len(labels)) % 5 == 0
        return Split(_rgb(grey[~test]), labels[~test]), Split(_rgb(grey[test]), labels[test])


class _Cifar(DatasetInfo):
    """The Python archive that torchvision downloads, or else a folder of images."""

    image_size, lossless, train_images = 32, True, 50_000
    archive: ClassVar[str]
    batches: ClassVar[tuple[list[str], list[str]]]
    label_key: ClassVar[bytes]

    def files(self, root: Path) -> list[Path]:
        originals = [root / self.archive / name for names in self.batches for name in names]
        return originals if all(path.is_file() for path in originals) else super().files(root)

    def read(self, root: Path) -> tuple[Split, Split]:
        if not all(path.parent == root / self.archive for path in self.files(root)):
            return self.read_folder(root)
        train, test = ([_unpickle(root / self.archive / name) for name in names] for names in self.batches)
        return self._split(train), self._split(test)

    def _split(self, batches: list[dict[bytes, Any]]) -> Split:
        pixels = np.concatenate([batch[b"data"] for batch in batches])
        labels = [label for batch in batches for label in batch[self.label_key]]
        return Split(pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64))

    def fetch(self, root: Path) -> None:
        import torchvision
        from torchvision.datasets.utils import download_and_extract_archive

        source = getattr(torchvision.datasets, self.title.replace("-", ""))
        try:
            download_and_extract_archive(source.url, str(root), filename=source.filename, md5=source.tgz_md5)
        except (OSError, RuntimeError) as error:
            raise MissingError(f"dataset {self.name!r}: {source.url} cannot be downloaded: {error}") from error


@datasets.register("cifar10")
class Cifar10(_Cifar):
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32x32 pixels."""

    title, short, classes = "CIFAR-10", "CF10", 10
    archive, label_key = "cifar-10-batches-py", b"labels"
    batches = ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"])
    hint = "`prepare` downloads it, or unpack it as cifar10/{train,test}/<class>/*"


@datasets.register("cifar100")
class Cifar100(_Cifar):
    """CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32x32 pixels, fine labels."""

    title, short, classes = "CIFAR-100", "CF100", 100
    archive, label_key = "cifar-100-python", b"fine_labels"
    batches = (["train"], ["test"])
    hint = "`prepare` downloads it, or unpack it as cifar100/{train,test}/<class>/*"


@datasets.register("fashion_mnist")
class FashionMnist(DatasetInfo):
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28x28 pixels, gzipped IDX or not."""

    title, short, classes, image_size, train_images = "Fashion-MNIST", "FMNIST", 10, 28, 60_000
    hint = "`prepare` downloads it, or put its four IDX files into fashion_mnist/"
    stems: ClassVar[tuple[str, ...]] = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )

    def files(self, root: Path) -> list[Path]:
        for base in (root / "FashionMNIST" / "raw", root / self.name):
            found = [next(iter(sorted(base.glob(f"{stem}*"))), None) for stem in self.stems]
            if all(found):
                return [path for path in found if path]
        return []

    def read(self, root: Path) -> tuple[Split, Split]:
        train_images, train_labels, test_images, test_labels = map(_idx, self.files(root))
        return (
            Split(_rgb(train_images), train_labels.astype(np.int64)),
            Split(_rgb(test_images), test_labels.astype(np.int64)),
        )

    def fetch(self, root: Path) -> None:
        import torchvision

        try:
            torchvision.datasets.FashionMNIST(str(root), download=True)
        except (OSError, RuntimeError) as error:
            raise MissingError(f"dataset {self.name!r} cannot be downloaded: {error}") from error


@datasets.register("tiny_imagenet")
class TinyImageNet(DatasetInfo):
    """Tiny-ImageNet (Le and Yang 2015): 100,000 + 10,000 images of 64x64 pixels."""

    title, short, classes, image_size, train_images = "Tiny-ImageNet", "TIN", 200, 64, 100_000
    hint = "get tiny-imagenet-200.zip and lay it out as tiny_imagenet/{train,val}/<class>/*"


@datasets.register("imagenet1k")
class ImageNet1K(DatasetInfo):
    """ImageNet-1K (Russakovsky et al. 2015): 1,281,167 + 50,000 images of many sizes."""

    title, short, classes, streams, train_images = "ImageNet-1K", "IN1K", 1000, True, 1_281_167
    hint = "get ILSVRC2012 from image-net.org and lay it out as imagenet1k/{train,val}/<class>/*"


def _rgb(grey: Images) -> Images:
    """Repeat grey images (N, H, W) over three channels."""
    return np.repeat(grey[:, None], 3, axis=1)


def _idx(path: Path) -> Images:
    """Read an IDX file of bytes: two zero bytes, type 8, the number of dimensions, each as big-endian int32."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        if data[:3] != b"\0\0\x08":
            raise UserError(f"{path}: not an IDX file of bytes")
        shape = np.frombuffer(data, dtype=">i4", count=data[3], offset=4)
        return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not a readable IDX file: {error}") from error


class _ArraysOnly(pickle.Unpickler):
    """The CIFAR archive is a Python 2 pickle. This reader can make arrays, dicts, lists and strings of it: no more."""

    allowed: ClassVar[set[tuple[str, str]]] = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(path: Path) -> dict[bytes, Any]:
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if not isinstance(batch, dict) or b"data" not in batch:
            raise UserError(f"{path}: not a CIFAR batch")
    except (
        pickle.UnpicklingError,
        EOFError,
        OSError,
        ValueError,
        AttributeError,
        ImportError,
        IndexError,
    ) as error:
        raise UserError(f"{path}: not a readable CIFAR batch: {error}") from error
    return batch
