"""The contract of a dataset, the registry, and the cache of decoded images."""

import hashlib
import os
import re
import stat
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bench.atomic import atomic_write
from bench.datasets import folder
from bench.errors import MissingError, PluginError, UserError, did_you_mean, told
from bench.places import Places
from bench.registry import Registry
from bench.spec import Cell

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images and their labels: decoded, uint8 (N, 3, H, W), or else the paths of N files to decode when needed."""

    images: Images | list[Path] | folder.Paths
    labels: Labels  # int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageSet:
    """A dataset as it was found here. `title` says what it is, a lossy copy included; `digest` is its content's."""

    title: str
    digest: str
    classes: int
    train: Split
    test: Split


class DatasetInfo:
    """A dataset by name. Subclass, fill in the attributes and register; write `read` when it is not a folder.

    By default it is a folder `<root>/<name>/{train,test|val}/<class>/*` in the layout of torchvision's
    `ImageFolder`. `hint` says how to get it.
    """

    title: str
    short: str  # as in the prior's name `<short>-T`
    classes: ClassVar[int | None] = None
    train_images: ClassVar[int | None] = None  # how many, where that is known without looking
    image_size: ClassVar[int | None] = None  # pixels of a side; None: not all the same, or not known
    lossless: ClassVar[bool] = False  # its originals are, so that JPEG files are a copy and must say so
    streams: ClassVar[bool] = False  # too large for memory: decoded when needed
    hint: ClassVar[str] = ""

    def __init__(self, name: str) -> None:
        self.name = name

    def files(self, root: Path) -> list[Path]:
        """Return the files that hold the dataset, [] when it is not there or needs none."""
        return folder.files(root / self.name)

    def read(self, root: Path) -> tuple[Split, Split]:
        """Return the training and test splits from below `root`."""
        return self.read_folder(root)

    def fetch(self, root: Path) -> None:
        """Download the dataset to below `root`. Raises MissingError when that cannot be done."""
        raise MissingError(f"dataset {self.name!r} cannot be downloaded{': ' if self.hint else ''}{self.hint}")

    def write(self, root: Path, train: Split, test: Split) -> None:
        """Write decoded splits below `root` as `read` finds them: the stand-in of a rehearsal."""
        folder.write(root / self.name / "train", np.asarray(train.images), train.labels)
        folder.write(root / self.name / "test", np.asarray(test.images), test.labels)

    def here(self, root: Path) -> bool:
        """Return whether the dataset is below `root`."""
        return bool(self.files(root))

    def title_here(self, root: Path) -> str:
        """Return the title, marked when what is below `root` is a lossy copy."""
        files = self.files(root) if self.lossless else []
        return f"{self.title} (JPEG)" if any(f.suffix.lower() in {".jpg", ".jpeg"} for f in files) else self.title

    def read_folder(self, root: Path) -> tuple[Split, Split]:
        """Read `<root>/<name>` in ImageFolder layout."""
        (train_files, train_labels), (test_files, test_labels), classes = folder.scan(root / self.name)
        if self.classes is not None and len(classes) != self.classes:
            raise UserError(f"{root / self.name}: {len(classes)} class folders where {self.title} has {self.classes}")
        if self.streams:
            return Split(folder.Paths(train_files), train_labels), Split(folder.Paths(test_files), test_labels)
        return (
            Split(folder.decode(train_files, self.image_size), train_labels),
            Split(folder.decode(test_files, self.image_size), test_labels),
        )


datasets: Registry[Callable[[str], DatasetInfo]] = Registry("dataset", package="bench.datasets")


class Folder(DatasetInfo):
    """Any folder in ImageFolder layout that nobody registered; its images must all have one size."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.title = self.short = name


def image_size(cell: Cell, places: Places) -> int:
    """Return the pixels of a cell's square images: its protocol's, or else the dataset's own. Raises UserError."""
    size = cell.protocol.input_size or find_dataset(cell.dataset, places.data).image_size
    if size is None:
        raise UserError(f"dataset {cell.dataset!r} has no size of its own: set protocol.input_size, in pixels")
    return size


def find_dataset(name: str, root: Path) -> DatasetInfo:
    """Return the registered dataset `name`, or the folder of that name below `root`. Raises UserError."""
    if name in datasets:
        return _registered(name)
    if "/" not in name and name not in {".", ".."} and (root / name / "train").is_dir():
        return Folder(name)
    raise UserError(
        f"unknown dataset {name!r}, nor is there a folder {root / name / 'train'}{did_you_mean(name, datasets)}"
    )


def short_name(name: str) -> str:
    """Return the name by which a `<DATASET>-T` prior calls a dataset: a registered one's short name, or its own."""
    with suppress(PluginError):  # of one that is broken, no cell comes to its end
        return _registered(name).short if name in datasets else name
    return name


def _registered(name: str) -> DatasetInfo:
    """Return the registered dataset `name`. Raises PluginError when it is none, as a plugin's may be."""
    make = datasets.get(name)
    try:
        info = make(name)
        complete = isinstance(info, DatasetInfo) and bool(info.title and info.short)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{datasets.describe(make)}: {told(error)}") from error
    if not complete:
        raise PluginError(f"{datasets.describe(make)}: must be a subclass of DatasetInfo")
    return info


_loaded: dict[str, ImageSet] = {}

# What numpy and zipfile raise on a damaged file; RuntimeError: one that seems encrypted, or of a future zip version;
# TypeError: an array where an archive should be; MemoryError: an absurd shape; SystemError: Python 3.11's parser, which
# numpy's headers go through, now and then on a sound one.
CACHE_ERRORS = (
    OSError,
    LookupError,
    ValueError,
    EOFError,
    RuntimeError,
    TypeError,
    MemoryError,
    SystemError,
    zipfile.BadZipFile,
)


def dataset_digest(name: str, places: Places) -> str:
    """Return the digest of a dataset's content: of pixels and labels, or of the files of one that streams.

    From the cache, where it is there, without reading an image; else each image is decoded once. Raises MissingError,
    saying where the dataset was looked for and how to get it, and UserError when it is damaged.
    """
    info = find_dataset(name, places.data)
    try:
        # Numpy leaves a file open that turns out to be damaged, so it is opened here.
        with _cache_path(info, places).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            digest = str(arrays["digest"])
            if not re.fullmatch("[0-9a-f]{16}", digest):
                raise ValueError("not a digest")
            return digest
    except CACHE_ERRORS:
        return load_dataset(name, places).digest


def load_dataset(name: str, places: Places) -> ImageSet:
    """Return a dataset; the last one used stays in memory.

    Images are decoded once and cached as one file of arrays, found again by the names, sizes and times of the
    dataset's files. Raises as `dataset_digest` does.
    """
    info = find_dataset(name, places.data)
    path = _cache_path(info, places)
    if str(path) not in _loaded:
        found = _read_cache(info, path, places) or _read_files(info, path, places)
        _loaded.clear()
        _loaded[str(path)] = found
    return _loaded[str(path)]


def _cache_path(info: DatasetInfo, places: Places) -> Path:
    sha = hashlib.sha256()
    for file in info.files(places.data):
        try:
            found = file.stat()
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{file}: not a file but a folder, a pipe or a device")
        sha.update(os.fsencode(file) + f"\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return places.cache / "datasets" / f"{info.name}-{sha.hexdigest()[:16]}.npz"


def _read_cache(info: DatasetInfo, path: Path, places: Places) -> ImageSet | None:
    """Return the cached dataset; None when there is none, or what is there is damaged and must be made anew."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            digest = str(arrays["digest"])
            if info.streams:
                return _image_set(info, *info.read(places.data), digest, places)
            train = Split(arrays["train_images"], arrays["train_labels"])
            test = Split(arrays["test_images"], arrays["test_labels"])
    except CACHE_ERRORS:
        return None
    return _image_set(info, train, test, digest, places) if digest == _digest(train, test) else None


def _read_files(info: DatasetInfo, path: Path, places: Places) -> ImageSet:
    if not info.here(places.data):
        raise MissingError(
            f"dataset {info.name!r} is not there: looked in {places.data.absolute() / info.name}"
            f"{f'; {info.hint}' if info.hint else ''}; --data-root or BENCH_DATA names the folder that holds it"
        )
    train, test = info.read(places.data)
    for name, split in (("training", train), ("test", test)):
        _check_kinds(info, split)
        if not len(split):
            raise UserError(f"dataset {info.name!r} in {places.data}: no {name} image")
    if test.labels.max() > train.labels.max():
        raise UserError(f"dataset {info.name!r} in {places.data}: a class of the test images has no training image")
    digest = _digest(train, test)
    arrays: dict[str, Any] = {"digest": np.array(digest)}
    if not info.streams:
        arrays |= {"train_images": np.asarray(train.images), "train_labels": train.labels}
        arrays |= {"test_images": np.asarray(test.images), "test_labels": test.labels}
    try:
        with atomic_write(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot cache here ({error.strerror}); BENCH_CACHE names another folder"
        ) from error
    return _image_set(info, train, test, digest, places)


def _check_kinds(info: DatasetInfo, split: Split) -> None:
    """Raise PluginError unless a split's arrays are what the loaders and losses take."""
    images, labels = split.images, split.labels
    plain = isinstance(labels, np.ndarray) and labels.dtype == np.int64 and labels.ndim == 1 and not (labels < 0).any()
    if isinstance(images, np.ndarray):
        plain = plain and images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] == 3
    if not plain or len(images) != len(labels):
        raise PluginError(
            f"{datasets.describe(type(info))}: `read` must return splits of N images, uint8 (N, 3, H, W) or paths, with"
            " N labels, int64 and from 0 on"
        )


def _image_set(info: DatasetInfo, train: Split, test: Split, digest: str, places: Places) -> ImageSet:
    return ImageSet(info.title_here(places.data), digest, int(train.labels.max()) + 1, train, test)


def _digest(*splits: Split) -> str:
    sha = hashlib.sha256()
    for split in splits:
        if not isinstance(split.images, np.ndarray):
            contents = folder.each(split.images, folder.content_digest)
            # Labels first: asked for one more content, `each` names the files that were refused.
            for label, content in zip(split.labels, contents, strict=True):
                sha.update(f"{label} {content}\n".encode())
        else:
            sha.update(f"{split.images.shape}".encode())
            sha.update(np.ascontiguousarray(split.images).data)
            sha.update(np.ascontiguousarray(split.labels).data)
    return sha.hexdigest()[:16]


def balanced_part(labels: Labels, count: int) -> npt.NDArray[np.int64]:
    """Return the sorted indices of a class-balanced part of `count` images, the same in every run.

    Raises ValueError when there are not that many.
    """
    if count > len(labels):
        raise ValueError(f"{count:,} of {len(labels):,} images")
    shuffled = np.random.default_rng(0).permutation(len(labels))
    # Rank within the class, then take images rank by rank: all classes keep step for as long as they last.
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    chosen = shuffled[np.argsort(rank[shuffled], kind="stable")][:count]
    return np.sort(chosen)
