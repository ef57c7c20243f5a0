"""The datasets that are known by name."""

import functools
import gzip
import io
import pickle
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.core.errors import MissingError, UserError
from bench.data import folder
from bench.data.dataset import DatasetInfo, Images, Split, datasets


@datasets.register("digits")
class Digits(DatasetInfo):
    """1,797 handwritten digits of 8x8 pixels that scikit-learn ships; every fifth is for test."""

    title, short, classes, image_size = "Digits", "DIGITS", 10, 8
    train_images, test_images = 1437, 360
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

    image_size, lossless, train_images, test_images = 32, True, 50_000, 10_000
    archive: ClassVar[str]
    batches: ClassVar[tuple[list[str], list[str]]]
    label_key: ClassVar[bytes]

    def files(self, root: Path) -> list[Path]:
        return self._originals(root) or super().files(root)

    def ignored(self, root: Path) -> Counter[str]:
        return Counter() if self._originals(root) else super().ignored(root)

    def _originals(self, root: Path) -> list[Path]:
        """Return the files of the archive, [] when it is not whole."""
        found = [root / self.archive / name for names in self.batches for name in names]
        return found if all(folder.kind(path) is not None for path in found) else []

    def read(self, root: Path) -> tuple[Split, Split]:
        assert self.classes is not None
        files = self._originals(root)
        if not files:
            return self.read_folder(root)
        read = functools.partial(_unpickle, label_key=self.label_key, classes=self.classes)
        batches = list(folder.each(files, read))
        return self._split(batches[: len(self.batches[0])]), self._split(batches[len(self.batches[0]) :])

    def _split(self, batches: list[tuple[Images, list[int]]]) -> Split:
        pixels = np.concatenate([images for images, _ in batches])
        labels = [label for _, labels in batches for label in labels]
        return Split(pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64))

    def write(self, root: Path, train: Split, test: Split) -> None:
        (root / self.archive).mkdir(parents=True)
        for names, split in zip(self.batches, (train, test), strict=True):
            images = np.array_split(np.asarray(split.images).reshape(-1, 3072), len(names))
            labels = np.array_split(split.labels, len(names))
            for name, pixels, classes in zip(names, images, labels, strict=True):
                batch = {b"data": pixels, self.label_key: classes.tolist()}
                (root / self.archive / name).write_bytes(pickle.dumps(batch, protocol=2))

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

    title, short, classes, image_size = "Fashion-MNIST", "FMNIST", 10, 28
    train_images, test_images = 60_000, 10_000
    hint = "`prepare` downloads it, or put its four IDX files into fashion_mnist/"
    stems: ClassVar[tuple[str, ...]] = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )

    def files(self, root: Path) -> list[Path]:
        for base in (root / "FashionMNIST" / "raw", root / self.name):
            found = [
                next((path for path in (base / stem, base / f"{stem}.gz") if folder.kind(path) is not None), None)
                for stem in self.stems
            ]
            if all(found):
                return [path for path in found if path]
        return []

    def read(self, root: Path) -> tuple[Split, Split]:
        files = self.files(root)
        arrays = list(folder.each(files, _idx))
        return self._split(files[:2], arrays[:2]), self._split(files[2:], arrays[2:])

    def _split(self, paths: list[Path], arrays: list[Images]) -> Split:
        (images_path, labels_path), (images, labels) = paths, arrays
        if images.shape[1:] != (28, 28):
            raise UserError(f"{images_path}: shape {images.shape} where (N, 28, 28) is expected")
        if labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise UserError(f"{labels_path}: not {len(images):,} labels from 0 to 9, as {images_path} needs")
        return Split(_rgb(images), labels.astype(np.int64))

    def write(self, root: Path, train: Split, test: Split) -> None:
        (root / self.name).mkdir(parents=True)
        grey = [np.asarray(split.images)[:, 0] for split in (train, test)]
        arrays = (grey[0], train.labels, grey[1], test.labels)
        for stem, array in zip(self.stems, arrays, strict=True):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
            (root / self.name / stem).write_bytes(head + array.astype(np.uint8).tobytes())

    def fetch(self, root: Path) -> None:
        import torchvision

        try:
            torchvision.datasets.FashionMNIST(str(root), download=True)
        except (OSError, RuntimeError) as error:
            raise MissingError(f"dataset {self.name!r} cannot be downloaded: {error}") from error


@datasets.register("tiny_imagenet")
class TinyImageNet(DatasetInfo):
    """Tiny-ImageNet (Le and Yang 2015): 100,000 + 10,000 images of 64x64 pixels."""

    title, short, classes, image_size = "Tiny-ImageNet", "TIN", 200, 64
    train_images, test_images = 100_000, 10_000
    hint = "get tiny-imagenet-200.zip and lay it out as tiny_imagenet/{train,val}/<class>/*"


@datasets.register("imagenet1k")
class ImageNet1K(DatasetInfo):
    """ImageNet-1K (Russakovsky et al. 2015): 1,281,167 + 50,000 images of many sizes."""

    title, short, classes, streams = "ImageNet-1K", "IN1K", 1000, True
    train_images, test_images = 1_281_167, 50_000
    hint = "get ILSVRC2012 from image-net.org and lay it out as imagenet1k/{train,val}/<class>/*"


def _rgb(grey: Images) -> Images:
    """Repeat grey images (N, H, W) over three channels."""
    return np.repeat(grey[:, None], 3, axis=1)


MAX_IDX = 100_000_000  # bytes, twice those of the training images


def _idx(path: Path) -> Images:
    """Read an IDX file of bytes: two zero bytes, type 8, the number of dimensions, each as big-endian int32."""
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
        raise UserError(f"{path}: not a readable IDX file: {error}") from error
    if data[:3] != b"\0\0\x08":
        raise UserError(f"{path}: not an IDX file of bytes")
    return array


class _Type:
    """Stands for numpy's dtype in a pickle."""

    def __init__(self, name: bytes | str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, of no use for bytes."""


class _Array:
    """Stands for numpy's array in a pickle. Numpy's own crashes the process when a damaged file fills it in."""

    value: Images

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, shape, kind, columns_first, content = state
        if kind.name not in (b"u1", "u1") or columns_first or type(content) is not bytes:
            raise ValueError("it holds an array of something else than rows of bytes")
        self.value = np.frombuffer(content, dtype=np.uint8).reshape(shape)


_LOADS: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch


class _ArraysOnly(pickle._Unpickler):
    """The CIFAR archive is a Python 2 pickle. This reader can make arrays, dicts, lists and strings of it: no more.

    It is the one in Python: the one in C takes gigabytes for a far place in its memo. Keys are checked because hashing
    tuples of tuples takes twice the time at each level.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_LOADS)

    def checked_setitem(self) -> None:
        self.check_keys(self.stack[-2:-1])
        _LOADS[pickle.SETITEM[0]](self)

    def checked_setitems(self) -> None:
        self.check_keys(self.stack[::2])
        _LOADS[pickle.SETITEMS[0]](self)

    def checked_dict(self) -> None:
        self.check_keys(self.stack[::2])
        _LOADS[pickle.DICT[0]](self)

    def check_keys(self, keys: list[object]) -> None:
        if not all(isinstance(key, bytes | str) for key in keys):
            raise pickle.UnpicklingError("a key is no text")

    def refuse_set(self) -> None:
        raise pickle.UnpicklingError("it holds a set")

    dispatch |= {
        pickle.SETITEM[0]: checked_setitem,
        pickle.SETITEMS[0]: checked_setitems,
        pickle.DICT[0]: checked_dict,
        pickle.ADDITEMS[0]: refuse_set,
        pickle.FROZENSET[0]: refuse_set,
    }

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _Type,
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.allowed[module, name]


def _unpickle(path: Path, label_key: bytes, classes: int) -> tuple[Images, list[int]]:
    """Return the images (N, 3072) and labels of a batch of a CIFAR archive. Raises UserError."""
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images, labels = batch[b"data"].value, list(batch[label_key])
    except Exception as error:  # pickle raises nearly anything on a damaged file
        raise UserError(f"{path}: not a readable CIFAR batch: {type(error).__name__}: {error}") from error
    if images.shape != (len(labels), 3072) or not all(type(y) is int and 0 <= y < classes for y in labels):
        raise UserError(f"{path}: not images of 3x32x32 bytes with a label from 0 to {classes - 1} each")
    return images, labels
