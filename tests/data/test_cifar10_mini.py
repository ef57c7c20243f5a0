"""The images that come with the package, and that a wheel has them."""

import lzma
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bench.core.paths import Paths
from bench.data import load_dataset
from bench.data.sets.cifar10_mini import ARCHIVE
from tests.cifar10_mini import tar_of_part

ROOT = Path(__file__).parents[2]


def test_it_needs_no_data_root(tmp_path: Path) -> None:
    found = load_dataset("cifar10_mini", Paths(tmp_path / "nothing", tmp_path, "g"))
    assert found.title == "CIFAR-10 mini (JPEG)"
    for split, each in ((found.train, 250), (found.test, 100)):
        images = np.asarray(split.images)
        assert images.shape == (10 * each, 3, 32, 32)
        assert np.bincount(split.labels).tolist() == [each] * 10
        assert len({image.tobytes() for image in images}) > 0.99 * len(images)


@pytest.mark.slow
def test_it_is_made_of_the_archive(cifar10_archive: Path) -> None:
    assert lzma.decompress(ARCHIVE.read_bytes()) == tar_of_part(cifar10_archive)


def test_a_wheel_has_images_weights_and_their_licence(tmp_path: Path) -> None:
    """Of a copy, in which nothing is left of other builds."""
    pytest.importorskip("setuptools", "77")
    for name in ("bench", "methods", "priors"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    code = "import setuptools.build_meta as build; build.build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        for folder in ("bench/data/shipped", "priors/shipped"):
            for path in sorted((ROOT / folder).iterdir()):
                assert packed.read(f"{folder}/{path.name}") == path.read_bytes()
