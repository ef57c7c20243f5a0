"""Fixtures of the harness's tests."""

from collections.abc import Iterator

import pytest

from tests.bench.processes import Forks, forks


@pytest.fixture(scope="session")
def server() -> Iterator[Forks]:
    """Starts runs of the command line, each in a process of its own."""
    with forks() as found:
        yield found
