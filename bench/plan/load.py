"""Grids with every method: an arm of method "*" is one for each that runs on any backbone and batch."""

from collections.abc import Iterable, Sequence

from bench.core.errors import PluginError
from bench.grid import load
from bench.grid.schema import Grid


def load_grid(name: str, profile: str | None = None, settings: Sequence[str] = ()) -> Grid:
    """Read and validate a grid, as `bench.grid.load.load_grid` does. Raises UserError."""
    return load.load_grid(name, profile, settings, _methods)


def _methods() -> Iterable[str]:
    from methods import methods  # imports torch, which other grids can be read without

    for name in methods:
        try:
            method = methods.get(name)
            if method.small_batches and not method.needs_tokens:
                yield name
        except PluginError:  # its cells say why
            yield name
