"""Files that are there whole or not at all, files that are verified, and files that are damaged, set aside."""

import errno
import glob
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

from bench.core.errors import DamagedFile, UserError, WriteError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write that becomes `path`, on disk, when the block ends; an error leaves no trace of it.

    Raises WriteError when the disk refuses.
    """
    try:
        _make_folder(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename not in {None, str(path.parent)} and not str(error.filename).endswith(".tmp"):
            raise  # of what the block reads
        raise WriteError(error.errno, error.strerror, str(path)) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise UserError, naming the path, where the file system does not answer: that never means fewer files."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def read_bytes(path: Path, most: int, md5: str | None = None) -> bytes:
    """Return the content of a file, of the one that has this MD5 where that is given.

    An MD5 is enough to know a published file by: nobody can make another one for a digest that is given. Raises
    DamagedFile when the file is another one or has over `most` bytes, and UserError when it cannot be read.
    """
    with reading(path):
        if path.stat().st_size > most:
            raise DamagedFile(f"{path}: over {most:,} bytes")
        content = path.read_bytes()
    if md5 and (other := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise DamagedFile(f"{path}: not the file that was published (MD5 {md5}, it has {other}): download it again")
    return content


def written(path: Path) -> int | None:
    """Return when a file was written, in nanoseconds; None when it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left; no other process may be writing it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def set_aside(path: Path, why: str, suffix: str = "damaged") -> None:
    """Rename a file that cannot be trusted, never over another one, and say so: `<name>.damaged`, `.damaged.2`, ..."""
    names = (f"{path.name}.{suffix}" + (f".{number}" if number > 1 else "") for number in count(1))
    to = next(place for name in names if not (place := path.with_name(name)).exists())
    with suppress(FileNotFoundError):  # another runner was faster
        path.rename(to)
        print(f"{path}: {why}; set aside as {to.name}", file=sys.stderr)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, all of them on disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot
            raise
    finally:
        os.close(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
