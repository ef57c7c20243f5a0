"""The cluster that slow tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster.daemons import Slurm, running, why_not


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A real Slurm of two nodes."""
    if reason := why_not():
        pytest.skip(reason)
    with TemporaryDirectory(prefix="slurm") as folder:  # pytest's own cannot be entered by the user of munge
        Path(folder).chmod(0o755)
        with running(Path(folder)) as found:
            yield found
