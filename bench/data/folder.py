"""Folders in the layout of torchvision's `ImageFolder`: `{train,test|val}/<class>/<image>`."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.core.files import reading
from bench.data.decode import write_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
Listing = tuple[list[Path], npt.NDArray[np.int64]]


class PathList(Sequence[Path]):
    """The paths of many files in two arrays, about as many bytes as they have characters.

    A million `Path` objects take four times that, and each process that is forked would copy those that it looks at.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        text, ends = bytearray(), [0]
        for path in paths:
            text += os.fsencode(path)
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.array(ends, dtype=np.int64)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> "PathList": ...

    def __getitem__(self, index: int | slice | npt.NDArray[np.int64]) -> "Path | PathList":
        """Return one path, or those of a slice or of an array of indices int64 (n,)."""
        if isinstance(index, slice | np.ndarray):
            return PathList(self[int(i)] for i in np.arange(len(self))[index])
        place = range(len(self))[index]
        return Path(os.fsdecode(self._text[self._ends[place] : self._ends[place + 1]]))

    def __len__(self) -> int:
        return len(self._ends) - 1


def kind(path: Path) -> int | None:
    """Return what a path leads to (`stat.S_IFDIR`, ...), None when nothing is there. Raises UserError."""
    with reading(path):
        try:
            return stat.S_IFMT(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders, sorted, and the files in a folder. Links are followed, one that leads nowhere raises.

    Names with a leading dot are not data but what file managers, notebooks and archives leave.
    """
    found: tuple[list[Path], list[Path]] = ([], [])
    with reading(folder), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                is_folder = stat.S_ISDIR(entry.stat().st_mode) if entry.is_symlink() else entry.is_dir()
                found[not is_folder].append(folder / entry.name)
    return sorted(found[0]), found[1]


def _below(base: Path) -> Iterator[Path]:
    """Yield every file below `base`. No folder is gone into twice."""
    seen: set[tuple[int, int]] = set()

    def is_new(folder: Path) -> bool:
        with reading(folder):
            status = folder.stat()
        new = (status.st_dev, status.st_ino) not in seen
        seen.add((status.st_dev, status.st_ino))
        return new

    left = [base] if kind(base) == stat.S_IFDIR and is_new(base) else []
    while left:
        folders, found = _inside(left.pop())
        yield from found
        left += reversed([folder for folder in folders if is_new(folder)])


def files(base: Path) -> list[Path]:
    """Return every image file below `base`, sorted. Raises UserError where a folder cannot be read."""
    return sorted(path for path in _below(base) if path.suffix.lower() in SUFFIXES)


def scan(base: Path) -> tuple[Listing, Listing, list[str]]:
    """Return the training files and labels, those for test, and the class names.

    Raises UserError when a split or a class folder is missing or empty, naming its path.
    """
    train, test, classes = _splits(base)
    return _listing(train, classes), _listing(test, classes), classes


def _listing(split: Path, classes: list[str]) -> Listing:
    """Return the files of a split and their labels. Raises UserError."""
    by_class = [_images(split / name) for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(paths) for paths in by_class])
    return [path for paths in by_class for path in paths], labels


def _images(folder: Path) -> list[Path]:
    """Return the images of a class folder. Raises UserError when there are none."""
    images = files(folder)
    if not images:
        raise UserError(f"{folder}: the class folder is missing or has no image")
    return images


def _splits(base: Path) -> tuple[Path, Path, list[str]]:
    """Return the folders of the training and the test images, and the class names. Raises UserError.

    Of `test` and `val`, the test images are in the first whose class folders are those of `train`: an archive may
    have a test set without labels beside them.
    """
    folders = {path.name: path for path in _inside(base)[0]}
    candidates = [folders[name] for name in ("test", "val") if name in folders]
    if "train" not in folders or not candidates:
        raise UserError(f"{base}: needs the folders train and test (or val), each with one folder per class")
    train = folders["train"]
    classes = _classes(train)
    if not classes:
        raise UserError(f"{train}: no class folder")
    for split in candidates:
        if _classes(split) == classes:
            return train, split, classes
    raise _difference(train, classes, candidates[0], _classes(candidates[0]))


def _difference(train: Path, classes: list[str], split: Path, names: list[str]) -> UserError:
    """Return the error on a split whose class folders, `names`, are not those of `train`."""
    missing, extra = sorted(set(classes) - set(names)), sorted(set(names) - set(classes))
    for name in extra:
        if other := _alike(name, missing):
            return UserError(
                f"{split / name}: {name!a} looks like the class folder {other!a} of {train} and differs in its form of"
                " Unicode (NFC, NFD): rename one of them"
            )
    for name in missing:
        _images(train / name)
    cure = f"test or val must have the class folders of {train}"
    if extra:
        return UserError(f"{split / extra[0]}: a class folder that {train} does not have; {cure}")
    return UserError(f"{split / missing[0]}: the class folder is missing or has no image; {cure}")


def _alike(name: str, others: Iterable[str]) -> str | None:
    """Return the other name that differs from `name` in its form of Unicode alone."""
    return next((other for other in others if other != name and _nfc(other) == _nfc(name)), None)


def _nfc(name: str) -> str:
    return normalize("NFC", name)


def _classes(split: Path) -> list[str]:
    """Return the names of a split's class folders. Raises UserError when two of them look alike."""
    names = [path.name for path in _inside(split)[0]]
    forms: dict[str, str] = {}
    for name in names:
        other = forms.setdefault(_nfc(name), name)
        if other != name:
            raise UserError(
                f"{split}: the class folders {other!a} and {name!a} look alike and differ in their form of Unicode"
                " (NFC, NFD): put the images of both into one"
            )
    return names


def lookalike(base: Path, name: str) -> str | None:
    """Return a name in a folder that differs from `name` in its form of Unicode alone."""
    with reading(base):
        return _alike(name, [path.name for path in base.iterdir()] if kind(base) == stat.S_IFDIR else [])


def ignored(base: Path) -> Counter[str]:
    """Return how many files below a folder of images are not used, by suffix and place. Raises UserError."""
    train, test, _ = _splits(base)
    counts: Counter[str] = Counter()
    for path in _below(base):
        split, *inner = path.relative_to(base).parts
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES or split not in {train.name, test.name} or len(inner) < 2:
            counts[f"{suffix or 'without a suffix'} in {split if inner else base.name}"] += 1
    return counts


def write(base: Path, images: Iterable[npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64], suffix: str) -> None:
    """Write images (3, H, W) as files `<base>/<class>/<number><suffix>`."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        write_image(base / f"{label:04}" / f"{number:06}{suffix}", image)
