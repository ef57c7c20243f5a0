"""The contract of a prior, and the registry of kinds of priors."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from bench.core.errors import UserError, did_you_mean
from bench.core.paths import Paths
from bench.core.registry import Registry
from bench.data.augment import MEAN, STD
from bench.grid.cell import Cell
from bench.models.weights import load_weights
from priors.catalogue import CATALOGUE


class Prior:
    """A frozen model that makes targets. Subclass, write `model`, register.

    A grid names it as `<kind>` or `<kind>:<argument>`. Any architecture is a prior for any other: of its p features the
    targets keep k = min(d, p) components, d being the dimension of the trained network's.

    Args:
        argument: what follows the colon, or "".
        cell: the cell that asks.
        paths: the folders of the run.
    """

    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    input_size: int | None = None  # pixels; None: the cell's own
    version: ClassVar[int] = 1

    def __init__(self, argument: str, cell: Cell, paths: Paths) -> None:
        self.argument, self.cell, self.paths = argument, cell, paths

    def model(self) -> nn.Module:
        """Return the network from images (B, 3, size, size) to features (B, p). Raises MissingError."""
        raise NotImplementedError(f"{type(self).__name__} has no method `model`")

    def untrained(self) -> nn.Module:
        """Return the network with random weights, as a rehearsal uses it; by default the model itself."""
        return self.model()

    def digest(self) -> str:
        """Return what identifies the model's weights: equal digests, equal targets. Raises MissingError."""
        return f"{type(self).__name__}-{self.version}"

    def fetch(self) -> None:
        """Download the weights, when they are a download."""


class Stored(Prior):
    """A prior whose weights are in a file, and fit the network that `untrained` returns."""

    def path(self) -> Path:
        """Return where the weights lie."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        model = self.untrained()
        load_weights(model, self.path(), self.key())
        return model

    def key(self) -> str | None:
        """Return behind which prefix of names the file has the network; None: there is one alone."""
        return None


priors: Registry[type[Prior]] = Registry("prior", package="priors", contract=Prior)


def find_prior(name: str, cell: Cell, paths: Paths) -> Prior:
    """Return the prior that `name` (`<kind>` or `<kind>:<argument>`) stands for.

    Raises UserError, and MissingError for a name of the catalogue that nothing here or in a plugin has a model for.
    """
    kind, _, argument = name.partition(":")
    if kind in priors:
        return priors.get(kind)(argument, cell, paths)
    if kind in CATALOGUE:
        raise CATALOGUE[kind].missing(paths.data)
    near = did_you_mean(kind, {*priors, *CATALOGUE})
    raise UserError(f"unknown prior {name!r}{near} or a dataset's short name with -T, such as CF10-T")


@torch.no_grad()
def feature_dim(model: nn.Module, size: int, name: str) -> int:
    """Return the dimension p of the features that prior `name`'s model makes of an image of `size` pixels.

    Leaves the model in eval mode. Raises UserError when it takes no images of that size.
    """
    try:
        return int(model.eval()(torch.zeros(1, 3, size, size)).flatten(1).shape[1])
    except Exception as error:  # architectures refuse a size by whatever they like
        raise UserError(f"prior {name!r} takes no images of {size} pixels ({error or type(error).__name__})") from error


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes, which is read again only when it has changed."""
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache
def _digest_of(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
