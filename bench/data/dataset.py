"""The contract of a dataset, and the registry of those that are known by name."""

import stat
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from bench.core.errors import MissingError, PluginError, UserError, describe_error, did_you_mean
from bench.core.paths import Paths
from bench.core.registry import Registry
from bench.data import folder
from bench.data.decode import decode
from bench.grid.cell import Cell

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images and their labels: decoded, uint8 (N, 3, H, W), or else the paths of N files to decode when needed."""

    images: Images | folder.PathList  # a list of paths will do
    labels: Labels  # int64 (N,)

    def __post_init__(self) -> None:
        if isinstance(self.images, list):
            object.__setattr__(self, "images", folder.PathList(self.images))

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: npt.NDArray[np.int64]) -> "Split":
        """Return the images of these indices."""
        return Split(self.images[index], self.labels[index])


class DatasetInfo:
    """A dataset by name. Subclass, fill in the attributes and register; write `read` when it is not a folder.

    By default it is a folder `<root>/<name>/{train,test|val}/<class>/*` in the layout of torchvision's
    `ImageFolder`, unless `originals` finds it as it was published. `hint` says how to get it.
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
    torchvision: ClassVar[str | None] = None  # the class of `torchvision.datasets` that downloads it

    def __init__(self, name: str) -> None:
        self.name = name

    def originals(self, root: Path) -> list[Path]:
        """Return the files of the dataset in a format of its own, for `read_originals`; [] where not all are there."""
        return []

    def read_originals(self, paths: list[Path]) -> tuple[Split, Split]:
        """Return the training and test splits that these files hold."""
        raise NotImplementedError

    def files(self, root: Path) -> list[Path]:
        """Return the files that hold the dataset, [] when it is not there or needs none."""
        return self.originals(root) or folder.files(root / self.name)

    def here(self, root: Path) -> bool:
        """Return whether the dataset is below `root`."""
        return bool(self.files(root))

    def read(self, root: Path) -> tuple[Split, Split]:
        """Return the training and test splits from below `root`."""
        if originals := self.originals(root):
            return self.read_originals(originals)
        (train_files, train_labels), (test_files, test_labels), classes = folder.scan(root / self.name)
        if self.classes is not None and len(classes) != self.classes:
            raise UserError(f"{root / self.name}: {len(classes)} class folders where {self.title} has {self.classes}")
        if self.streams:
            return Split(folder.PathList(train_files), train_labels), Split(folder.PathList(test_files), test_labels)
        images = decode([*train_files, *test_files], self.image_size)
        count = len(train_files)
        return Split(images[:count], train_labels), Split(images[count:], test_labels)

    def write(self, root: Path, train: Split, test: Split) -> None:
        """Write decoded splits below `root` as `read` finds them: the stand-in of a rehearsal."""
        for name, split in (("train", train), ("test", test)):
            folder.write(
                root / self.name / name, np.asarray(split.images), split.labels, ".png" if self.lossless else ".jpg"
            )

    def fetch(self, root: Path) -> None:
        """Download the dataset to below `root`. Raises MissingError when that cannot be done."""
        if self.torchvision is None:
            raise MissingError(f"dataset {self.name!r} cannot be downloaded{': ' if self.hint else ''}{self.hint}")
        import torchvision

        try:
            getattr(torchvision.datasets, self.torchvision)(root, download=True)
        except (OSError, RuntimeError) as error:
            raise MissingError(f"dataset {self.name!r} cannot be downloaded: {error}") from error

    def ignored(self, root: Path) -> Counter[str]:
        """Return how many files beside those that are read are not used, by suffix and place."""
        if self.originals(root) or not folder.kind(root / self.name / "train"):
            return Counter()
        return folder.ignored(root / self.name)

    def title_here(self, root: Path) -> str:
        """Return the title, marked when what is below `root` is a lossy copy."""
        files = self.files(root) if self.lossless else []
        return f"{self.title} (JPEG)" if any(f.suffix.lower() in {".jpg", ".jpeg"} for f in files) else self.title


datasets: Registry[Callable[[str], DatasetInfo]] = Registry("dataset", package="bench.data.sets")


class Folder(DatasetInfo):
    """Any folder in ImageFolder layout that nobody registered; its images must all have one size."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.title = self.short = name


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


def _registered(name: str) -> DatasetInfo:
    """Return the registered dataset `name`. Raises PluginError when it is none, as a plugin's may be."""
    make = datasets.get(name)
    try:
        info = make(name)
        complete = isinstance(info, DatasetInfo) and bool(info.title and info.short)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{datasets.describe(make)}: {describe_error(error)}") from error
    if not complete:
        raise PluginError(f"{datasets.describe(make)}: must be a subclass of DatasetInfo")
    return info


def short_name(name: str) -> str:
    """Return the name by which a `<DATASET>-T` prior calls a dataset: a registered one's short name, or its own."""
    with suppress(PluginError):  # of one that is broken, no cell comes to its end
        return _registered(name).short if name in datasets else name
    return name


def image_size(cell: Cell, paths: Paths) -> int:
    """Return the pixels of a cell's square images: its protocol's, or else the dataset's own. Raises UserError."""
    size = cell.protocol.input_size or find_dataset(cell.dataset, paths.data).image_size
    if size is None:
        raise UserError(f"dataset {cell.dataset!r} has no size of its own: set protocol.input_size, in pixels")
    return size


def grey_to_rgb(grey: Images) -> Images:
    """Return grey images (N, H, W) as (N, 3, H, W)."""
    return np.repeat(grey[:, None], 3, axis=1)


def balanced_part(labels: Labels, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the sorted indices of a class-balanced part of `count` images, the same in every run with a seed.

    Raises ValueError when there are not that many.
    """
    if count > len(labels):
        raise ValueError(f"{count:,} of {len(labels):,} images")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    # Rank within the class, then take images rank by rank: all classes keep step for as long as they last.
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    chosen = shuffled[np.argsort(rank[shuffled], kind="stable")][:count]
    return np.sort(chosen)
