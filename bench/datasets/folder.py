"""Folders in the layout of torchvision's `ImageFolder`: `{train,test|val}/<class>/<image>`."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from bench.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
Listing = tuple[list[Path], npt.NDArray[np.int64]]


class Paths(Sequence[Path]):
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
    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> "Paths": ...

    def __getitem__(self, index: int | slice | npt.NDArray[np.int64]) -> "Path | Paths":
        """Return one path, or those of a slice or of an array of indices int64 (n,)."""
        if isinstance(index, slice | np.ndarray):
            return Paths(self[int(i)] for i in np.arange(len(self))[index])
        place = range(len(self))[index]
        return Path(os.fsdecode(self._text[self._ends[place] : self._ends[place + 1]]))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths) and self._text == other._text and bool(np.array_equal(self._ends, other._ends))

    __hash__ = None  # type: ignore[assignment]


def files(base: Path) -> list[Path]:
    """Return every image file below `base`, sorted."""
    found = [
        Path(where, name)
        for where, _, names in os.walk(base, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    ]
    return sorted(found)


def scan(base: Path) -> tuple[Listing, Listing, list[str]]:
    """Return the training files and labels, those for test, and the class names.

    Raises UserError when a split or a class folder is missing or empty, naming its path.
    """
    test = next((base / name for name in ("test", "val") if (base / name).is_dir()), None)
    if not (base / "train").is_dir() or test is None:
        raise UserError(f"{base}: needs the folders train and test (or val), each with one folder per class")
    classes = sorted(path.name for path in (base / "train").iterdir() if path.is_dir())
    listings: list[Listing] = []
    for split in (base / "train", test):
        extra = {path.name for path in split.iterdir() if path.is_dir()} - set(classes)
        if extra:
            raise UserError(f"{split / min(extra)}: a class folder that {base / 'train'} does not have")
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = files(split / name)
            if not found:
                raise UserError(f"{split / name}: the class folder is missing or has no image")
            paths += found
            labels += [label] * len(found)
        listings.append((paths, np.array(labels, dtype=np.int64)))
    if not classes:
        raise UserError(f"{base / 'train'}: no class folder")
    return listings[0], listings[1], classes


def decode(paths: list[Path], size: int | None) -> npt.NDArray[np.uint8]:
    """Return the images as uint8 (N, 3, H, W), all of one size; `size` pixels square when given.

    Raises UserError naming the first file that cannot be read or has another size.
    """
    first = read_image(paths[0])
    shape = (size, size) if size else first.shape[1:]
    images = np.empty((len(paths), 3, *shape), dtype=np.uint8)

    def fill(index: int) -> None:
        image = read_image(paths[index])
        if image.shape[1:] != shape:
            height, width = image.shape[1:]
            raise UserError(f"{paths[index]}: {width}x{height} pixels where {shape[1]}x{shape[0]} are expected")
        images[index] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(paths)), chunksize=256):
            pass
    return images


def write(base: Path, images: Iterable[npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64]) -> None:
    """Write images (3, H, W) as JPEG files `<base>/<class>/<number>.jpg`."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = base / f"{label:04}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Return one image as uint8 (3, H, W) RGB. Raises UserError naming the file when it is damaged."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image: {error}") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
