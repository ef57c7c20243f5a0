"""Image files: read, decoded, and refused with one sentence when they are damaged."""

import hashlib
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.core.files import read_bytes

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Pixels = npt.NDArray[np.uint8]
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # whatever the suffix; Pillow runs Ghostscript on another one
MAX_PIXELS = 89_478_485  # beyond which Pillow warns of a bomb
MAX_BYTES = 500_000_000
SMALL = 2**14  # bytes of a file that one thread reads sooner than several, which wait for Python's lock in turns
BLOCK = 256  # images that are in memory beside the others
PROGRESS_SECONDS = 10.0
NAMED = 5  # of the damaged files

T = TypeVar("T")


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
        (_, first), *others = refused
        more = f" (and {len(others)} more: {_listed([path for path, _ in others], NAMED - 1)})" if others else ""
        raise UserError(f"{first}{more}")


def _listed(things: Sequence[object], most: int) -> str:
    """Return the first things of many in one text."""
    return ", ".join(map(str, things[:most])) + (", ..." if len(things) > most else "")


def decode(paths: Sequence[Path], size: int | None) -> npt.NDArray[np.uint8]:
    """Return the images as uint8 (N, 3, H, W), all of one size; `size` pixels square when given.

    Raises UserError naming the files that cannot be read or have another size.
    """
    images = np.empty((0, 3, 0, 0), dtype=np.uint8)
    examples: dict[tuple[int, ...], Path] = {}
    sizes: Counter[tuple[int, ...]] = Counter()
    for index, image in enumerate(each(paths, lambda path: read_image(path, size))):
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
        counts = _listed([f"{count:,} of {_pixels(shape)}" for shape, count in sizes.most_common()], NAMED)
        raise UserError(
            f"{examples[least]}: {_pixels(least)} pixels where most images have {_pixels(most)} ({counts}); make them"
            " one size, or let the dataset stream: `streams = True` in a class of your own in a --plugin file, with"
            " protocol.input_size in the grid"
        )
    return images


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"


def content_digest(path: Path, size: int | None = None) -> str:
    """Return the SHA-256 of an image file's bytes. Raises UserError naming the file when it is damaged.

    `size`: pixels of a side that the image must have.
    """
    content = read_bytes(path, MAX_BYTES)
    read_image(path, size, io.BytesIO(content))
    return hashlib.sha256(content).hexdigest()


def read_image(path: Path, size: int | None = None, content: IO[bytes] | None = None) -> Pixels:
    """Return one image as uint8 (3, H, W) RGB. Raises UserError naming the file when it is damaged.

    `size`: pixels of a side that it must have. `content`: what is in the file, where that has been read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(content or path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, over {MAX_PIXELS:,} in all")  # noqa: TRY301
            if _is_deep(image):
                raise ValueError("more than 8 bits in a channel")  # noqa: TRY301
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a readable image: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise UserError(f"{path}: not a readable image: {error or type(error).__name__}") from error
    if size and pixels.shape[1:] != (size, size):
        raise UserError(f"{path}: {_pixels(pixels.shape)} pixels where {size}x{size} are expected")
    return np.ascontiguousarray(pixels)


def write_image(path: Path, image: Pixels) -> None:
    """Write an image uint8 (3, H, W) in the format of the path's suffix."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(path)


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
