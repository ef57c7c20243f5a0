"""Datasets that were read: each is one file of arrays, verified when it is read, and the last one stays in memory."""

import hashlib
import inspect
import os
import stat
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.arrays import read_arrays, write_arrays
from bench.core.errors import DamagedFile, Lack, MissingError, PluginError, UserError
from bench.core.files import reading
from bench.core.paths import Paths
from bench.data import folder
from bench.data.dataset import DatasetInfo, Labels, Split, datasets, find_dataset
from bench.data.decode import content_digest, each

VERSION = b"2"  # raised when files are chosen or decoded in another way


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a dataset as it was found here.

    `title` says what it is, and when it is a lossy copy or a part; `digest` is its content's: of pixels and labels, or
    of the files of one that streams.
    """

    title: str
    digest: str
    train_images: int


@dataclass(frozen=True)
class ImageSet(DatasetFacts):
    """A dataset as it was found here, or a part of its images; `classes` is the whole set's number of them.

    `validation` is the part of the training images that a trial leaves out, to be judged by.
    """

    classes: int
    train: Split
    test: Split
    validation: Split | None = None


class DatasetCache:
    """Finds datasets by the names, sizes and times of their files; images are decoded once.

    Each method raises MissingError, saying where a dataset was looked for and how to get it, and UserError when it is
    damaged or not what its name says.
    """

    def __init__(self) -> None:
        self._held: dict[Path, ImageSet] = {}

    def load(self, name: str, paths: Paths) -> ImageSet:
        """Return a dataset; the last one stays in memory."""
        info = find_dataset(name, paths.data)
        path = _path(info, paths)
        if path not in self._held:
            images = _cached(info, path, paths) or _read(info, path, paths)
            self._held = {path: images}
        return self._held[path]

    def facts(self, name: str, paths: Paths) -> DatasetFacts:
        """Return what is known of a dataset, from its file where that is there; else each image is decoded once."""
        if facts := cached_facts(find_dataset(name, paths.data), paths):
            return facts
        images = self.load(name, paths)
        return DatasetFacts(images.title, images.digest, images.train_images)  # without the images, which are large

    def clear(self) -> None:
        """Forget what is in memory, as a new process has nothing there."""
        self._held = {}


dataset_cache = DatasetCache()
load_dataset, dataset_facts = dataset_cache.load, dataset_cache.facts


def cached_facts(info: DatasetInfo, paths: Paths) -> DatasetFacts | None:
    """Return what the cache knows of a dataset, None when that is nothing; no image is read. Raises UserError."""
    try:
        labels, texts = read_arrays(_path(info, paths), "train_labels", "test_labels")
    except DamagedFile:
        return None
    train, test = labels["train_labels"], labels["test_labels"]
    return DatasetFacts(_title(info, train, test, paths), texts["digest"], len(train))


def _path(info: DatasetInfo, paths: Paths) -> Path:
    """Return where a dataset is kept: another place for each name, size and time of its files. Raises UserError."""
    sha = hashlib.sha256(VERSION)
    # Images that no file holds are made by the dataset's own code.
    for file in info.files(paths.data) or [Path(inspect.getfile(type(info)))]:
        with reading(file):
            status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{file}: not a regular file")
        sha.update(os.fsencode(file) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return paths.cache / "datasets" / f"{info.name}-{sha.hexdigest()[:16]}.safetensors"


def _cached(info: DatasetInfo, path: Path, paths: Paths) -> ImageSet | None:
    """Return a dataset from its file; None when there is none, or it is damaged and must be made anew."""
    names = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        arrays, texts = read_arrays(path, *(() if info.streams else names))
    except DamagedFile:
        return None
    if info.streams:
        train, test = info.read(paths.data)
    else:
        train, test = (Split(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
    return _image_set(_title(info, train.labels, test.labels, paths), texts["digest"], train, test)


def _read(info: DatasetInfo, path: Path, paths: Paths) -> ImageSet:
    """Return a dataset from where its files are, and keep it at `path`."""
    if not info.here(paths.data):
        hint = f"; {info.hint}" if info.hint else ""
        raise MissingError(
            f"dataset {info.name!r} is not there: looked in {paths.data.absolute() / info.name}{hint}; --data-root or"
            " BENCH_DATA names the folder that holds it",
            Lack(f"dataset {info.name}", info.hint),
        )
    train, test = info.read(paths.data)
    _check(info, train, test, paths)
    title = _title(info, train.labels, test.labels, paths)  # another set is refused before each file is read
    digest = _digest(train, test, info.image_size)
    arrays: dict[str, Any] = {"train_labels": train.labels, "test_labels": test.labels}
    if not info.streams:
        arrays |= {"train_images": train.images, "test_images": test.images}
    try:
        write_arrays(path, arrays, {"digest": digest})
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot cache here ({error.strerror}); BENCH_CACHE names another folder"
        ) from error
    return _image_set(title, digest, train, test)


def _image_set(title: str, digest: str, train: Split, test: Split) -> ImageSet:
    return ImageSet(title, digest, len(train), int(train.labels.max()) + 1, train, test)


def _check(info: DatasetInfo, train: Split, test: Split, paths: Paths) -> None:
    """Raise PluginError unless each split has images and labels as loaders take them, and UserError on an empty one."""
    whose, size = datasets.describe(type(info)), info.image_size
    for name, split in (("training", train), ("test", test)):
        images, labels = split.images, split.labels
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim != 1 or (labels < 0).any():
            raise PluginError(f"{whose}: `read` must return splits with N labels, int64 and from 0 on")
        if not len(split):
            raise UserError(f"dataset {info.name!r} in {paths.data}: no {name} image")
        if len(images) != len(split):
            raise PluginError(f"{whose}: {len(images):,} {name} images with {len(split):,} labels")
        if isinstance(images, np.ndarray):
            square = (size, size) if size else images.shape[2:]
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, *square):
                raise PluginError(
                    f"{whose}: {name} images are {images.dtype} {images.shape} where uint8 (N, 3, {size or 'H'},"
                    f" {size or 'W'}) is expected"
                )
        elif not info.streams:
            raise PluginError(
                f"{whose}: files that are not decoded; a class whose `read` gives them says `streams = True`"
            )


def _title(info: DatasetInfo, train: Labels, test: Labels, paths: Paths) -> str:
    """Return the title of a dataset with these labels. Raises UserError when they are those of another one."""
    title, where = info.title_here(paths.data), f"dataset {info.name!r} in {paths.data}"
    for name, labels, whole in (("training", train, info.train_images), ("test", test, info.test_images)):
        classes = len(np.unique(labels))
        if info.classes is not None and classes != info.classes:
            raise UserError(f"{where}: {name} images of {classes:,} classes where {info.title} has {info.classes:,}")
        if whole is not None and len(labels) > whole:
            raise UserError(f"{where}: {len(labels):,} {name} images where {info.title} has {whole:,}")
        if whole is not None and len(labels) < whole:
            title += f", {len(labels):,} of {whole:,} {'test images' if name == 'test' else 'images'}"
    if np.setdiff1d(test, train).size:
        raise UserError(f"{where}: a class of the test images has no training image")
    return title


def _digest(train: Split, test: Split, size: int | None) -> str:
    """Return the digest of decoded images and labels, or of files, whose images must have `size` pixels if given."""
    sha = hashlib.sha256()
    for split in (train, test):
        if isinstance(split.images, np.ndarray):
            sha.update(f"{split.images.shape}".encode())
            sha.update(np.ascontiguousarray(split.images).data)
            sha.update(np.ascontiguousarray(split.labels).data)
    if isinstance(train.images, folder.PathList):
        paths = folder.PathList(chain(train.images, test.images))
        contents = each(paths, lambda path: content_digest(path, size))
        for label, content in zip(np.concatenate([train.labels, test.labels]), contents, strict=True):
            sha.update(f"{label} {content}\n".encode())
    return sha.hexdigest()[:16]
