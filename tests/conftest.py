"""Fixtures that several test files share, and `--plugin FILE` to test what a plugin registers."""

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch.utils.data import _utils, dataloader

from bench.core.environment import tune_process
from bench.core.registry import Registry, load_plugin
from priors.catalogue import SHIPPED
from tests.run.processes import Forks, forks

tune_process()
# No test cuts the power, so that nothing has to reach the disk, for which a busy one takes 0.1 s a file.
os.fsync = lambda file: None
# Torch looks every 5 s whether a process that decodes images lives, and waits as long for one to end: tests need not.
_utils.MP_STATUS_CHECK_INTERVAL = _utils.worker.MP_STATUS_CHECK_INTERVAL = 0.5
dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.5,)

SHARED = Path(os.environ.get("BENCH_SHARED") or Path(__file__).resolve().parents[2] / "shared")
TAKEN = {"train": 100, "test": 50}  # images of each class


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plugin", action="append", default=[], type=Path, help="Python file that registers something")


def pytest_configure(config: pytest.Config) -> None:
    for path in config.getoption("--plugin"):
        load_plugin(path)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def _needs(path: Path) -> Path:
    if not path.is_file():
        pytest.skip(f"needs {path.name}, looked for {path}; BENCH_SHARED names the folder that holds it")
    return path


@pytest.fixture(scope="session")
def resnet20_weights() -> Path:
    """The CIFAR-10 ResNet-20 with its linear head, as safetensors."""
    return SHIPPED / "resnet20_cifar10.safetensors"


@pytest.fixture(scope="session")
def cifar10_archive() -> Path:
    """All images of CIFAR-10 as JPEG files."""
    return _needs(SHARED / "datasets" / "cifar10-jpeg.tar.xz")


@pytest.fixture(scope="session")
def cifar10_jpeg(cifar10_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with `cifar10`: the first real JPEG files of each class, 1,000 for training and 500 for test."""
    root = tmp_path_factory.mktemp("cifar10_jpeg")
    seen: Counter[tuple[str, str]] = Counter()
    with tarfile.open(cifar10_archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) < 3:
                continue
            split, label = parts[-3:-1]
            seen[split, label] += 1
            if seen[split, label] <= TAKEN[split]:
                content = tar.extractfile(member)
                assert content
                folder = root / "cifar10" / split / label
                folder.mkdir(parents=True, exist_ok=True)
                (folder / parts[-1]).write_bytes(content.read())
    assert len(seen) == 20
    return root


@pytest.fixture(scope="session")
def server() -> Iterator[Forks]:
    """Starts runs of the command line, each in a process of its own."""
    with forks() as found:
        yield found


@pytest.fixture
def temporary() -> Iterator[Callable[..., None]]:
    """`temporary(methods, bad=Bad)`: the registry knows it, and forgets after the test what was registered since."""
    with ExitStack() as stack:

        def know(registry: Registry[Any], **items: Any) -> None:
            stack.enter_context(registry.temporary(**items))

        yield know


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that everybody may read and write: pytest's are closed to others than its user."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def closed() -> Callable[[Path], AbstractContextManager[None]]:
    """`closed(path)`: while it lasts, the path may not be read, and this process obeys that, also when it is root's."""

    @contextmanager
    def close(path: Path) -> Iterator[None]:
        root, mode = os.geteuid() == 0, path.stat().st_mode
        path.chmod(0)
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)
            path.chmod(mode)

    return close
