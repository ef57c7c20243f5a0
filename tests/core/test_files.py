"""Files are on disk before they have their name. (`conftest.py` lets no other test wait for the disk.)"""

import os
from pathlib import Path

import pytest

from bench.core.files import atomic_write


def test_a_file_is_flushed_before_it_has_its_name_and_so_are_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "file"
    flushed: list[tuple[int, bool]] = []  # inode, and whether the file has its name
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append((os.fstat(file).st_ino, path.exists())))
    with atomic_write(path) as file:
        file.write(b"whole")
    inodes = [each.stat().st_ino for each in (tmp_path, path, path.parent)]
    assert flushed == list(zip(inodes, [False, False, True], strict=True))
    assert path.read_bytes() == b"whole"
