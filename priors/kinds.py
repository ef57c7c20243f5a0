"""The kinds of priors that come with the harness."""

import functools
import hashlib
from pathlib import Path

import torch
from torch import nn

from bench.backbones import build_backbone
from bench.datasets import image_size
from bench.errors import MissingError, UserError, did_you_mean
from bench.places import Places
from bench.seeds import derive
from bench.spec import Cell
from priors.base import Prior, priors
from priors.weights import load_weights, save_weights


@priors.register("rand")
class Rand(Prior):
    """A random network of the trained architecture (the paper's `Rand.`).

    The trained network's own initial weights, as in the public code, and so another network for every seed.
    """

    def digest(self) -> str:
        return f"rand-{self.cell.backbone}-{self.cell.seed}"

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.cell.seed, "backbone"))
            return build_backbone(self.cell.backbone, self.input_size or image_size(self.cell, self.places)).module


@priors.register("file")
class File(Prior):
    """`file:<path>`: weights as safetensors or as a state dict; the arm's `rela.backbone` names the architecture.

    A relative path is looked up from here and in `<data root>/priors`. A classifier in the file is left out.
    """

    def path(self) -> Path:
        places = [Path(self.argument), self.places.data / "priors" / self.argument]
        for path in places:
            if path.is_file():
                return path
        looked = " and ".join(str(path.absolute()) for path in dict.fromkeys(places))
        raise MissingError(f"prior 'file:{self.argument}' is not there: looked for {looked}")

    def digest(self) -> str:
        path = self.path()
        stat = path.stat()
        return f"{_sha256(path, stat.st_size, stat.st_mtime_ns)}-{self._architecture()}"

    def model(self) -> nn.Module:
        size = self.input_size or image_size(self.cell, self.places)
        backbone = build_backbone(self._architecture(), size)
        load_weights(backbone.module, self.path())
        return backbone.module

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

    def __init__(self, argument: str, cell: Cell, places: Places) -> None:
        super().__init__(argument, cell, places)
        import timm

        name, _, tag = argument.partition(".")
        known = timm.list_pretrained(f"{name}.*") if timm.is_model(name) else []
        if not known or (tag and argument not in known):
            near = did_you_mean(argument, known or timm.list_pretrained())
            raise UserError(f"unknown prior 'timm:{argument}': timm has no such model with pretrained weights{near}")
        config = timm.get_pretrained_cfg(argument)
        assert config is not None
        self.input_size = config.input_size[-1]
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
        import timm

        model: nn.Module = timm.create_model(self.argument, pretrained=False, num_classes=0)
        load_weights(model, self.path())
        return model

    def fetch(self) -> None:
        import timm

        if self.path().is_file():
            return
        try:
            model = timm.create_model(self.argument, pretrained=True, num_classes=0)
        except Exception as error:  # the hub's client raises whatever its transport does
            raise MissingError(f"prior 'timm:{self.argument}' cannot be downloaded: {error}") from error
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


@functools.lru_cache
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
