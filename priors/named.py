"""The named priors of the catalogue, registered: the networks, their weights' digests, and where they lie."""

import functools
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import nn

from bench.core.errors import MissingError, UserError
from bench.core.paths import Paths
from bench.grid.cell import Cell, digest
from bench.models.backbones import build_backbone
from bench.models.weights import digest_state, fitting_state
from priors.base import Prior, Stored, priors
from priors.catalogue import CATALOGUE, Entry
from priors.timm import Timm


class Named(Stored):
    """A prior of the catalogue, whose weights are a backbone of the harness and come with the package."""

    entry: ClassVar[Entry]

    def __init__(self, argument: str, cell: Cell, paths: Paths) -> None:
        super().__init__(argument, cell, paths)
        _check_bare(self.entry, argument, cell)
        self.input_size, self.mean, self.std = self.entry.input_size, self.entry.mean, self.entry.std

    def path(self) -> Path:
        return self.entry.path(self.paths.data)

    def digest(self) -> str:
        return weights_digest(self.entry, self.paths.data)

    def untrained(self) -> nn.Module:
        return build(self.entry)


class NamedTimm(Timm):
    """A prior of the catalogue, whose weights are a pretrained model of timm."""

    entry: ClassVar[Entry]

    def __init__(self, argument: str, cell: Cell, paths: Paths) -> None:
        super().__init__(self.entry.timm or "", cell, paths)
        self.name = self.entry.name
        _check_bare(self.entry, argument, cell)

    def path(self) -> Path:
        return self.entry.path(self.paths.data)

    def digest(self) -> str:
        return weights_digest(self.entry, self.paths.data)


def build(entry: Entry) -> nn.Module:
    """Return the network of an entry that has one, with random weights, or none on the device `meta`."""
    assert entry.model is not None
    if not entry.timm:
        return build_backbone(entry.model, entry.input_size).module
    import timm

    model: nn.Module = timm.create_model(entry.timm, pretrained=False, **entry.options)
    return model


def weights_digest(entry: Entry, root: Path) -> str:
    """Return the digest of an entry's network and of the tensors that it uses.

    The file's place, format and other content do not count. Raises MissingError, so that only the cells that need it
    are left out, when the file is not there or is damaged, or holds other weights than are known.
    """
    path = entry.path(root)
    if not path.is_file():
        raise entry.missing(root)
    stat = path.stat()
    try:
        content = _content(entry.name, path, stat.st_size, stat.st_mtime_ns)
        _check_content(entry, content, path)
    except UserError as error:
        raise MissingError(f"prior {entry.name!r}: {error}; delete it, and `prepare` downloads it again") from error
    return digest({"model": entry.model, "options": dict(entry.options), "weights": content})


@functools.lru_cache
def _content(name: str, path: Path, size: int, modified: int) -> str:
    """Return the digest of the tensors in use; of a file that did not change since, without reading it again."""
    with torch.device("meta"):
        model = build(CATALOGUE[name])
    return digest_state(fitting_state(model, path))


def _check_content(entry: Entry, content: str, path: Path) -> None:
    if entry.sha256 not in {None, content}:
        raise UserError(f"{path}: its weights have the SHA-256 {content[:16]}..., not {str(entry.sha256)[:16]}...")


def _check_bare(entry: Entry, argument: str, cell: Cell) -> None:
    if argument:
        raise UserError(f"prior '{entry.name}:{argument}': {entry.name} takes nothing after a colon")
    if cell.targets_of and cell.targets_of.backbone:
        raise UserError(f"prior {entry.name!r} has an architecture of its own: leave out {cell.targets_key}.backbone")


for _entry in CATALOGUE.values():
    if _entry.model is not None:
        _kind = NamedTimm if _entry.timm else Named
        _made = type(_kind.__name__, (_kind,), {"entry": _entry, "options": _entry.options, "__doc__": _entry.line()})
        priors.register(_entry.name)(cast(type[Prior], _made))
