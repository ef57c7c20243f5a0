"""Folders in the layout of torchvision's `ImageFolder`: `{train,test|val}/<class>/<image>`."""

import hashlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar, overload

import numpy as np
import numpy.typing as npt

from bench.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # whatever the suffix; Pillow runs Ghostscript on another one
MAX_PIXELS = 89_478_485  # beyond which Pillow warns of a bomb
MAX_BYTES = 500_000_000
BLOCK = 256  # images that are in memory beside the others
PROGRESS_SECONDS = 10.0
NAMED = 5  # of the damaged files

T = TypeVar("T")
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
    """Return every image file below `base`, sorted. Links are followed, but no folder is gone into twice."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def is_new(folder: Path) -> bool:
        stat = folder.stat()
        new = (stat.st_dev, stat.st_ino) not in seen
        seen.add((stat.st_dev, stat.st_ino))
        return new

    for where, folders, names in os.walk(base, followlinks=True):
        if not seen:
            is_new(base)
        folders[:] = [name for name in sorted(folders) if is_new(Path(where, name))]
        found += [Path(where, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
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


def each(paths: Sequence[Path], read: Callable[[Path], T]) -> Iterator[T]:
    """Yield what `read` makes of each file, in order, on all cores; every 10 seconds a line says how far it is.

    Raises UserError at the end when `read` did so, naming the files: nothing is yielded of these.
    """
    refused: list[tuple[Path, UserError]] = []
    told = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin in range(0, len(paths), BLOCK):
            block = paths[begin : begin + BLOCK]
            for path, future in [(path, pool.submit(read, path)) for path in block]:
                try:
                    yield future.result()
                except UserError as error:
                    refused.append((path, error))
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                print(f"{paths[0].parent}: {begin + len(block):,} of {len(paths):,} images read", file=sys.stderr)
    if refused:
        others = ", ".join(str(path) for path, _ in refused[1:NAMED])
        more = f" (and {len(refused) - 1} more: {others}{', ...' * (len(refused) > NAMED)})" if others else ""
        raise UserError(f"{refused[0][1]}{more}")


def decode(paths: list[Path], size: int | None) -> npt.NDArray[np.uint8]:
    """Return the images as uint8 (N, 3, H, W), all of one size; `size` pixels square when given.

    Raises UserError naming the files that cannot be read or have another size.
    """
    shape = (size, size) if size else read_image(paths[0]).shape[1:]

    def sized(path: Path) -> npt.NDArray[np.uint8]:
        image = read_image(path)
        if image.shape[1:] != shape:
            height, width = image.shape[1:]
            raise UserError(f"{path}: {width}x{height} pixels where {shape[1]}x{shape[0]} are expected")
        return image

    try:
        images = np.empty((len(paths), 3, *shape), dtype=np.uint8)
    except MemoryError as error:
        many = f"{len(paths):,} images of {shape[1]}x{shape[0]} pixels"
        raise UserError(f"{paths[0].parent}: {many} do not fit into memory; a dataset may stream") from error
    for index, image in enumerate(each(paths, sized)):
        images[index] = image
    return images


def content_digest(path: Path) -> str:
    """Return the SHA-256 of an image file's bytes. Raises UserError naming the file when it is damaged."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: over {MAX_BYTES:,} bytes, which no image is")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    read_image(path, io.BytesIO(content))
    return hashlib.sha256(content).hexdigest()


def write(base: Path, images: Iterable[npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64]) -> None:
    """Write images (3, H, W) as JPEG files `<base>/<class>/<number>.jpg`."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = base / f"{label:04}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)


def read_image(path: Path, content: IO[bytes] | None = None) -> npt.NDArray[np.uint8]:
    """Return one image as uint8 (3, H, W) RGB. Raises UserError naming the file when it is damaged.

    `content`: what is in the file, where that has been read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(content or path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, over {MAX_PIXELS:,} in all")  # noqa: TRY301
            if image.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits in a channel")  # noqa: TRY301
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a readable image: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise UserError(f"{path}: not a readable image: {error or type(error).__name__}") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
