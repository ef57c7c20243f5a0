"""The contract of a dataset, the registry, and the cache of decoded images."""

import hashlib
import inspect
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bench.core.errors import MissingError, PluginError, UserError, did_you_mean, told
from bench.core.files import atomic_write
from bench.core.paths import Places
from bench.core.registry import Registry
from bench.data import folder
from bench.grid.schema import Cell

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images and their labels: decoded, uint8 (N, 3, H, W), or else the paths of N files to decode when needed."""

    images: Images | list[Path] | folder.PathList
    labels: Labels  # int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageSet:
    """A dataset as it was found here. `title` and `digest` are those of its `DatasetFacts`."""

    title: str
    digest: str
    classes: int
    train: Split
    test: Split


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a dataset as it was found here without its images.

    `title` says what it is, and when it is a lossy copy or a part; `digest` is its content's.
    """

    title: str
    digest: str
    train_images: int


class DatasetInfo:
    """A dataset by name. Subclass, fill in the attributes and register; write `read` when it is not a folder.

    By default it is a folder `<root>/<name>/{train,test|val}/<class>/*` in the layout of torchvision's
    `ImageFolder`. `hint` says how to get it.
    """

    title: str
    short: str  # as in the prior's name `<short>-T`
    classes: ClassVar[int | None] = None
    train_images: ClassVar[int | None] = None  # how many the whole set has, where that is known without looking
    test_images: ClassVar[int | None] = None
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

    def ignored(self, root: Path) -> Counter[str]:
        """Return how many files beside those that are read are not used, by suffix and place."""
        return folder.ignored(root / self.name) if folder.kind(root / self.name / "train") else Counter()

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
            return Split(folder.PathList(train_files), train_labels), Split(folder.PathList(test_files), test_labels)
        images = folder.decode([*train_files, *test_files], self.image_size)
        count = len(train_files)
        return Split(images[:count], train_labels), Split(images[count:], test_labels)


datasets: Registry[Callable[[str], DatasetInfo]] = Registry("dataset", package="bench.data.sets")


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
    if "/" not in name and name not in {".", ".."} and folder.kind(root / name / "train") == stat.S_IFDIR:
        return Folder(name)
    if other := folder.lookalike(root, name):
        raise UserError(
            f"unknown dataset {name!a}; {root} has {other!a}, which looks alike and differs in its form of Unicode"
            " (NFC, NFD): rename it, or write it so in the grid"
        )
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

CACHE_VERSION = b"2"  # raised when files are chosen or decoded in another way

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

    Raises as `dataset_facts` does.
    """
    return dataset_facts(name, places).digest


def dataset_facts(name: str, places: Places) -> DatasetFacts:
    """Return what is known of a dataset, from the cache where it is there; else each image is decoded once.

    Raises MissingError, saying where the dataset was looked for and how to get it, and UserError when it is damaged
    or not what its name says.
    """
    info = find_dataset(name, places.data)
    if facts := cached_facts(info, places):
        return facts
    images = load_dataset(name, places)
    return DatasetFacts(images.title, images.digest, len(images.train))


def cached_facts(info: DatasetInfo, places: Places) -> DatasetFacts | None:
    """Return what the cache knows of a dataset, None when that is nothing; no image is read. Raises UserError."""
    try:
        # Numpy leaves a file open that turns out to be damaged, so it is opened here.
        with _cache_path(info, places).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            digest = str(arrays["digest"])
            if not re.fullmatch("[0-9a-f]{16}", digest):
                return None
            train, test = arrays["train_labels"], arrays["test_labels"]
            return DatasetFacts(_title(info, train, test, places), digest, len(train))
    except CACHE_ERRORS:
        return None


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
    sha = hashlib.sha256(CACHE_VERSION)
    # Images that no file holds are made by the dataset's own code.
    for file in info.files(places.data) or [Path(inspect.getfile(type(info)))]:
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
    _check(info, train, test, places)
    images = _image_set(info, train, test, "", places)  # another set is refused before each file is read for the digest
    digest = _digest(train, test, info.image_size)
    arrays: dict[str, Any] = {"digest": np.array(digest), "train_labels": train.labels, "test_labels": test.labels}
    if not info.streams:
        arrays |= {"train_images": train.images, "test_images": test.images}
    try:
        with atomic_write(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot cache here ({error.strerror}); BENCH_CACHE names another folder"
        ) from error
    return replace(images, digest=digest)


def _image_set(info: DatasetInfo, train: Split, test: Split, digest: str, places: Places) -> ImageSet:
    title = _title(info, train.labels, test.labels, places)
    return ImageSet(title, digest, int(train.labels.max()) + 1, train, test)


def _check(info: DatasetInfo, train: Split, test: Split, places: Places) -> None:
    """Raise PluginError unless each split has images and labels as loaders take them, and UserError on an empty one."""
    whose = datasets.describe(type(info))
    for name, split in (("training", train), ("test", test)):
        images, labels = split.images, split.labels
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim != 1 or (labels < 0).any():
            raise PluginError(f"{whose}: `read` must return splits with N labels, int64 and from 0 on")
        if not len(split):
            raise UserError(f"dataset {info.name!r} in {places.data}: no {name} image")
        if len(images) != len(split):
            raise PluginError(f"{whose}: {len(images):,} {name} images with {len(split):,} labels")
        if not isinstance(images, np.ndarray):
            if not info.streams:
                raise PluginError(
                    f"{whose}: files that are not decoded; a class whose `read` gives them says `streams = True`"
                )
        else:
            shape, size = images.shape, info.image_size
            square = (size, size) if size else shape[2:]
            if images.dtype != np.uint8 or len(shape) != 4 or shape[1:] != (3, *square):
                raise PluginError(
                    f"{whose}: {name} images are {images.dtype} {shape} where uint8 (N, 3,"
                    f" {size or 'H'}, {size or 'W'}) is expected"
                )


def _title(info: DatasetInfo, train: Labels, test: Labels, places: Places) -> str:
    """Return the title of a dataset with these labels. Raises UserError when they are those of another one."""
    title, where = info.title_here(places.data), f"dataset {info.name!r} in {places.data}"
    for name, labels, whole in (("training", train, info.train_images), ("test", test, info.test_images)):
        classes = len(np.unique(labels))
        if info.classes is not None and classes != info.classes:
            raise UserError(f"{where}: {name} images of {classes:,} classes where {info.title} has {info.classes:,}")
        if whole is not None and len(labels) > whole:
            raise UserError(f"{where}: {len(labels):,} {name} images where {info.title} has {whole:,}")
        if whole is not None and len(labels) < whole:
            title += f", {len(labels):,} of {whole:,} {'test ' * (name == 'test')}images"
    if np.setdiff1d(test, train).size:
        raise UserError(f"{where}: a class of the test images has no training image")
    return title


def _digest(train: Split, test: Split, size: int | None = None) -> str:
    """Return the digest of decoded images and labels, or of files, which must have `size` pixels where it is given."""
    sha = hashlib.sha256()
    for split in (train, test):
        if isinstance(split.images, np.ndarray):
            sha.update(f"{split.images.shape}".encode())
            sha.update(np.ascontiguousarray(split.images).data)
            sha.update(np.ascontiguousarray(split.labels).data)
    paths = folder.PathList(
        chain(*(split.images for split in (train, test) if not isinstance(split.images, np.ndarray)))
    )
    if paths:
        contents = folder.each(paths, lambda path: folder.content_digest(path, size))
        for label, content in zip(np.concatenate([train.labels, test.labels]), contents, strict=True):
            sha.update(f"{label} {content}\n".encode())
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
