"""The kinds of priors that come with the harness."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from bench.core.errors import MissingError, UserError, did_you_mean, told
from bench.core.paths import Places, expanded
from bench.data import image_size
from bench.grid.schema import Cell
from bench.models.backbones import build_backbone, initial_backbone
from bench.models.weights import load_weights, save_weights
from priors.base import Prior, feature_dim, priors


@priors.register("rand")
class Rand(Prior):
    """A random network of the trained architecture (the paper's `Rand.`).

    The trained network's own initial weights, as in the public code, and so another network for every seed.
    """

    def digest(self) -> str:
        return f"rand-{self.cell.backbone}-{self.cell.seed}"

    def model(self) -> nn.Module:
        size = self.input_size or image_size(self.cell, self.places)
        return initial_backbone(self.cell.backbone, size, self.cell.seed).module


@priors.register("file")
class File(Prior):
    """`file:<path>`: weights as safetensors or as a state dict; the arm's `rela.backbone` names the architecture.

    A relative path is looked up from here and in `<data root>/priors`. A classifier in the file is left out. Where the
    file holds the network more than once, as a student and a teacher, `rela.weights_key` names the prefix of one.
    """

    def path(self) -> Path:
        places = [expanded(self.argument), self.places.data / "priors" / self.argument]
        for path in places:
            if path.is_file():
                return path
        looked = " and ".join(str(path.absolute()) for path in dict.fromkeys(places))
        raise MissingError(f"prior 'file:{self.argument}' is not there: looked for {looked}")

    def digest(self) -> str:
        path = self.path()
        stat = path.stat()
        key = f"-{self._key()}" if self._key() is not None else ""
        return f"{_sha256(path, stat.st_size, stat.st_mtime_ns)}-{self._architecture()}{key}"

    def model(self) -> nn.Module:
        model = self.untrained()
        load_weights(model, self.path(), self._key())
        return model

    def _key(self) -> str | None:
        return self.cell.rela.weights_key if self.cell.rela else None

    def untrained(self) -> nn.Module:
        size = self.input_size or image_size(self.cell, self.places)
        return build_backbone(self._architecture(), size).module

    def _architecture(self) -> str:
        name = self.cell.rela.backbone if self.cell.rela else None
        if name is None:
            raise UserError(f"prior 'file:{self.argument}': rela.backbone must name the architecture of the file")
        return name


@priors.register("timm")
class Timm(Prior):
    """`timm:<model>`: a pretrained model of timm, as `prepare` stored it in `<data root>/priors/timm`.

    Its input size and normalisation are those that timm states. Never random weights: missing ones are an error.
    """

    options: ClassVar[Mapping[str, Any]] = {"num_classes": 0}  # of timm.create_model

    def __init__(self, argument: str, cell: Cell, places: Places) -> None:
        super().__init__(argument, cell, places)
        self.name = f"timm:{argument}"  # in messages
        import timm

        name, _, tag = argument.partition(".")
        known = timm.list_pretrained(f"{name}.*") if timm.is_model(name) else []
        if not known or (tag and argument not in known):
            near = did_you_mean(argument, known or timm.list_pretrained())
            raise UserError(f"unknown prior 'timm:{argument}': timm has no such model with pretrained weights{near}")
        config = timm.get_pretrained_cfg(argument)
        assert config is not None
        self.input_size = self.own_size = int(config.input_size[-1])
        self.mean, self.std = config.mean, config.std

    def path(self) -> Path:
        return self.places.data / "priors" / "timm" / f"{self.argument}.safetensors"

    def digest(self) -> str:
        path = self.path()
        if not path.is_file():
            raise MissingError(f"prior 'timm:{self.argument}' is not there: looked for {path}; `prepare` downloads it")
        stat = path.stat()
        return f"{_sha256(path, stat.st_size, stat.st_mtime_ns)}-{self.argument}"

    def model(self) -> nn.Module:
        model = self._network()
        load_weights(model, self.path())
        if self.input_size in {None, self.own_size}:
            return model
        assert self.input_size is not None
        try:
            feature_dim(model, self.input_size, self.name)
        except UserError as error:  # its weights are for one size alone, as a transformer's mostly are
            return self._resampled(self.input_size, error)
        return model

    def untrained(self) -> nn.Module:
        return self._network()

    def _network(self) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(self.argument, pretrained=False, **self.options)
        return model

    def _resampled(self, size: int, error: UserError) -> nn.Module:
        """Return the network for images of `size` pixels, with weights that timm fits to it. Raises UserError."""
        import timm

        stored = {"file": str(self.path())}  # has been read once, so it fits at the network's own size
        try:
            model: nn.Module = timm.create_model(
                self.argument, pretrained=True, pretrained_cfg_overlay=stored, img_size=size, **self.options
            )
        except Exception:  # an architecture refuses a size, or the argument, by whatever it likes
            raise UserError(f"{error}; its own size is {self.own_size}: leave out rela.input_size") from error
        feature_dim(model, size, self.name)
        return model

    def fetch(self) -> None:
        import timm

        if self.path().is_file():
            return
        try:
            model = timm.create_model(self.argument, pretrained=True, **self.options)
        except Exception as error:  # the hub's client raises whatever its transport does
            raise MissingError(f"prior {self.name!r} cannot be downloaded: {told(error)}") from error
        save_weights(model, self.path())


class Trained(Prior):
    """`<DATASET>-T`: the backbone of the BYOL cell at the full budget on that dataset, of the same grid and seed.

    It is not in the registry: the plan links it to the cell that makes it.

    Args:
        maker: the cell that trains the backbone.
        maker_id: its id, which stands for the weights.
    """

    def __init__(self, maker: Cell, maker_id: str, input_size: int, cell: Cell, places: Places) -> None:
        super().__init__("", cell, places)
        self.maker, self.maker_id, self.input_size = maker, maker_id, input_size

    def digest(self) -> str:
        return self.maker_id

    def model(self) -> nn.Module:
        path = self.places.backbone(self.maker_id)
        if not path.is_file():
            raise MissingError(f"the backbone that cell {self.maker_id} trained is not there: looked for {path}")
        assert self.input_size is not None
        backbone = build_backbone(self.maker.backbone, self.input_size)
        load_weights(backbone.module, path)
        return backbone.module


class Untrained(Prior):
    """Another prior's network with random weights, which looks at two images: a rehearsal needs no more."""

    def __init__(self, prior: Prior, name: str) -> None:
        super().__init__(name, prior.cell, prior.places)
        self.prior, self.input_size, self.mean, self.std = prior, prior.input_size, prior.mean, prior.std

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _Sparing(self.prior.untrained())

    def digest(self) -> str:
        return f"untrained {self.argument}"


class _Sparing(nn.Module):
    """A network that sees the first two images of a batch; the others are given the features of these."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(images[:2])
        return features[torch.arange(len(images), device=features.device) % len(features)]


@functools.lru_cache
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
