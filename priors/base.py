"""The contract of a prior, and the registry of kinds of priors."""

import re
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from bench.errors import UserError, did_you_mean
from bench.places import Places
from bench.registry import Registry
from bench.spec import Cell
from bench.views import MEAN, STD


class Prior:
    """A frozen model that makes targets. Subclass, write `model`, register.

    A grid names it as `<kind>` or `<kind>:<argument>`.

    Args:
        argument: what follows the colon, or "".
        cell: the cell that asks.
        places: the folders of the run.
    """

    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    input_size: int | None = None  # pixels; None: the cell's own
    version: ClassVar[int] = 1

    def __init__(self, argument: str, cell: Cell, places: Places) -> None:
        self.argument, self.cell, self.places = argument, cell, places

    def model(self) -> nn.Module:
        """Return the network from images (B, 3, size, size) to features (B, p). Raises MissingError."""
        raise NotImplementedError

    def digest(self) -> str:
        """Return what identifies the model's weights: equal digests, equal targets. Raises MissingError."""
        return f"{type(self).__name__}-{self.version}"

    def fetch(self) -> None:
        """Download the weights, when they are a download."""


priors: Registry[type[Prior]] = Registry("prior", package="priors")
_TRAINED = re.compile(r"(?P<dataset>.+)-T")


def trained_on(name: str) -> str | None:
    """Return the dataset's short name of a `<DATASET>-T` prior, None for any other prior."""
    match = _TRAINED.fullmatch(name)
    return match["dataset"] if match and ":" not in name else None


def find_prior(name: str, cell: Cell, places: Places) -> Prior:
    """Return the prior that `name` (`<kind>` or `<kind>:<argument>`) stands for. Raises UserError."""
    kind, _, argument = name.partition(":")
    if kind not in priors:
        raise UserError(
            f"unknown prior {name!r}{did_you_mean(kind, priors)} or a dataset's short name with -T, such as CF10-T"
        )
    return priors.get(kind)(argument, cell, places)
