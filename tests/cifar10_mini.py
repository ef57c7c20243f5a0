"""Makes the images that come with the package: `python -m tests.cifar10_mini cifar10-jpeg.tar.xz`.

They are the images that `train_images: 2500` takes of the archive, and 1,000 test images by the same choice: the JPEG
files as they are, sorted by name, without times or owners. The same archive gives the same files.
"""

import io
import lzma
import sys
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np

from bench.data.dataset import balanced_part
from bench.data.sets.cifar10_mini import ARCHIVE, Cifar10Mini

COUNTS = {"train": Cifar10Mini.train_images, "test": Cifar10Mini.test_images}


def tar_of_part(archive: Path) -> bytes:
    """Return the tar file of a class-balanced part of an archive `{train,test}/<class>/<image>`."""
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as part:
        for split, count in COUNTS.items():
            names = sorted(name for name in files if PurePosixPath(name).parts[0] == split)
            labels = np.unique([PurePosixPath(name).parent.name for name in names], return_inverse=True)[1]
            for index in balanced_part(labels, count):
                member = tarfile.TarInfo(names[index])
                member.size = len(files[names[index]])
                part.addfile(member, io.BytesIO(files[names[index]]))
    return out.getvalue()


if __name__ == "__main__":
    ARCHIVE.write_bytes(lzma.compress(tar_of_part(Path(sys.argv[1])), preset=9 | lzma.PRESET_EXTREME))
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size:,} bytes")
