"""Folders in the layout of torchvision's `ImageFolder`: `{train,test|val}/<class>/<image>`."""

import hashlib
import io
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar, overload
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # whatever the suffix; Pillow runs Ghostscript on another one
MAX_PIXELS = 89_478_485  # beyond which Pillow warns of a bomb
MAX_BYTES = 500_000_000
SMALL = 2**14  # bytes of a file that one thread reads sooner than several, which wait for Python's lock in turns
BLOCK = 256  # images that are in memory beside the others
PROGRESS_SECONDS = 10.0
NAMED = 5  # of the damaged files

T = TypeVar("T")
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

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PathList) and self._text == other._text and bool(np.array_equal(self._ends, other._ends))
        )

    __hash__ = None  # type: ignore[assignment]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raise UserError, naming the path, where the file system does not answer: its errors are never fewer files."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def kind(path: Path) -> int | None:
    """Return what a path leads to (`stat.S_IFDIR`, ...), None when nothing is there. Raises UserError."""
    with _told(path):
        try:
            return stat.S_IFMT(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders, sorted, and the files in a folder. Links are followed, one that leads nowhere raises.

    Names with a leading dot are not data but what file managers, notebooks and archives leave.
    """
    found: tuple[list[Path], list[Path]] = ([], [])
    with _told(folder), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                is_folder = stat.S_ISDIR(entry.stat().st_mode) if entry.is_symlink() else entry.is_dir()
                found[not is_folder].append(folder / entry.name)
    return sorted(found[0]), found[1]


def _below(base: Path) -> Iterator[Path]:
    """Yield every file below `base`. No folder is gone into twice."""
    seen: set[tuple[int, int]] = set()

    def is_new(folder: Path) -> bool:
        with _told(folder):
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
    listings: list[Listing] = []
    *splits, classes = _splits(base)
    for split in splits:
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = files(split / name)
            if not found:
                raise UserError(f"{split / name}: the class folder is missing or has no image")
            paths += found
            labels += [label] * len(found)
        listings.append((paths, np.array(labels, dtype=np.int64)))
    return listings[0], listings[1], classes


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
    raise UserError(_difference(train, classes, candidates[0], _classes(candidates[0])))


def _difference(train: Path, classes: list[str], split: Path, names: list[str]) -> str:
    """Return the sentence on a split whose class folders, `names`, are not those of `train`."""
    missing, extra = sorted(set(classes) - set(names)), sorted(set(names) - set(classes))
    for name, other in ((name, other) for name in extra for other in missing if _nfc(name) == _nfc(other)):
        return (
            f"{split / name}: {name!a} looks like the class folder {other!a} of {train} and differs in its form of"
            " Unicode (NFC, NFD): rename one of them"
        )
    for name in missing:
        if not files(train / name):
            return f"{train / name}: the class folder is missing or has no image"
    cure = f"test or val must have the class folders of {train}"
    if extra:
        return f"{split / extra[0]}: a class folder that {train} does not have; {cure}"
    return f"{split / missing[0]}: the class folder is missing or has no image; {cure}"


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
    with _told(base):
        names = [path.name for path in base.iterdir()] if kind(base) == stat.S_IFDIR else []
    return next((other for other in names if _nfc(other) == _nfc(name) and other != name), None)


def ignored(base: Path) -> Counter[str]:
    """Return how many files below a folder of images are not used, by suffix and place. Raises UserError."""
    train, test, _ = _splits(base)
    found: Counter[str] = Counter()
    for path in _below(base):
        split, *inner = path.relative_to(base).parts
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES or split not in {train.name, test.name} or len(inner) < 2:
            found[f"{suffix or 'without a suffix'} in {split if inner else base.name}"] += 1
    return found


def each(paths: Sequence[Path], read: Callable[[Path], T]) -> Iterator[T]:
    """Yield what `read` makes of each file, in order, large ones on all cores; each 10 seconds a line says where it is.

    Raises UserError at the end when `read` did so, naming the files: nothing is yielded of these.
    """
    refused: list[tuple[Path, UserError]] = []
    told = time.monotonic()
    small = bool(paths) and paths[0].is_file() and paths[0].stat().st_size < SMALL
    with ThreadPoolExecutor(1 if small else os.cpu_count()) as pool:
        for begin in range(0, len(paths), BLOCK):
            block = paths[begin : begin + BLOCK]
            for path, future in [(path, pool.submit(read, path)) for path in block]:
                try:
                    yield future.result()
                except UserError as error:
                    refused.append((path, error))
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                where = os.path.commonpath([paths[0], paths[-1]])
                print(f"{where}: {begin + len(block):,} of {len(paths):,} files read", file=sys.stderr)
    if refused:
        others = ", ".join(str(path) for path, _ in refused[1:NAMED])
        more = f" (and {len(refused) - 1} more: {others}{', ...' * (len(refused) > NAMED)})" if others else ""
        raise UserError(f"{refused[0][1]}{more}")


def decode(paths: Sequence[Path], size: int | None) -> npt.NDArray[np.uint8]:
    """Return the images as uint8 (N, 3, H, W), all of one size; `size` pixels square when given.

    Raises UserError naming the files that cannot be read or have another size.
    """
    images = np.empty((0, 3, 0, 0), dtype=np.uint8)
    sizes: Counter[tuple[int, ...]] = Counter()
    examples: dict[tuple[int, ...], Path] = {}
    for index, image in enumerate(each(paths, lambda path: _sized(path, read_image(path), size))):
        if not sizes:
            try:
                images = np.empty((len(paths), *image.shape), dtype=np.uint8)
            except MemoryError as error:
                many = f"{len(paths):,} images of {_pixels(image.shape)} pixels"
                raise UserError(f"{paths[0].parent}: {many} do not fit into memory; a dataset may stream") from error
        sizes[image.shape] += 1
        examples.setdefault(image.shape, paths[index])
        if image.shape == images.shape[1:]:
            images[index] = image
    if len(sizes) > 1:
        (most, _), *_, (least, _) = sizes.most_common()
        counts = ", ".join(f"{count:,} of {_pixels(shape)}" for shape, count in sizes.most_common(NAMED))
        raise UserError(
            f"{examples[least]}: {_pixels(least)} pixels where most images have {_pixels(most)} ({counts}"
            f"{', ...' * (len(sizes) > NAMED)}); make them one size, or let the dataset stream: `streams = True` in a"
            " class of your own in a --plugin file, with protocol.input_size in the grid"
        )
    return images


def _sized(path: Path, image: npt.NDArray[np.uint8], size: int | None) -> npt.NDArray[np.uint8]:
    """Return an image, of `size` pixels square where that is given. Raises UserError."""
    if size and image.shape[1:] != (size, size):
        raise UserError(f"{path}: {_pixels(image.shape)} pixels where {size}x{size} are expected")
    return image


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"


def content_digest(path: Path, size: int | None = None) -> str:
    """Return the SHA-256 of an image file's bytes. Raises UserError naming the file when it is damaged.

    `size`: pixels of a side that the image must have.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: over {MAX_BYTES:,} bytes, which no image is")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    _sized(path, read_image(path, io.BytesIO(content)), size)
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
            if _is_deep(image):
                raise ValueError("more than 8 bits in a channel")  # noqa: TRY301
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a readable image: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise UserError(f"{path}: not a readable image: {error or type(error).__name__}") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _is_deep(image: "ImageFile") -> bool:
    """Return whether the file has more than 8 bits in a channel, of which Pillow may keep 8 without a word."""
    from PIL.PngImagePlugin import PngImageFile
    from PIL.PpmImagePlugin import PpmImageFile
    from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

    if isinstance(image, TiffImageFile) and max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8:
        return True
    if isinstance(image, PngImageFile | PpmImageFile):
        for tile in image.tile:  # how it is coded: RGB;16B in PNG, and in PPM RGB beside the value of white
            if str(tile.args).endswith(";16B") or (isinstance(tile.args, tuple) and int(tile.args[1]) > 255):
                return True
    return image.mode.startswith(("I", "F"))
