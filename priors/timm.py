"""Pretrained models of timm as priors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from bench.core.errors import FETCH, Lack, MissingError, UserError, describe_error, did_you_mean
from bench.core.paths import Paths
from bench.grid.cell import Cell
from bench.models.weights import save_weights
from priors.base import Stored, feature_dim, file_digest, priors


@priors.register("timm")
class Timm(Stored):
    """`timm:<model>`: a pretrained model of timm, as `prepare` stored it in `<data root>/priors/timm`.

    Its input size and normalisation are those that timm states. Never random weights: missing ones are an error.
    """

    options: ClassVar[Mapping[str, Any]] = {"num_classes": 0}  # of timm.create_model

    def __init__(self, argument: str, cell: Cell, paths: Paths) -> None:
        super().__init__(argument, cell, paths)
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
        return self.paths.data / "priors" / "timm" / f"{self.argument}.safetensors"

    def digest(self) -> str:
        path = self.path()
        if not path.is_file():
            what = f"prior 'timm:{self.argument}' is not there: looked for {path}; {FETCH}"
            raise MissingError(what, Lack(f"prior timm:{self.argument}", FETCH))
        return f"{file_digest(path)}-{self.argument}"

    def untrained(self) -> nn.Module:
        return self._created(pretrained=False)

    def model(self) -> nn.Module:
        """At another size than the network's own, with weights that timm fits to it. Raises UserError."""
        model, size = super().model(), self.input_size
        if size is None or size == self.own_size:
            return model
        try:
            feature_dim(model, size, self.name)
        except UserError as error:  # its weights are for one size alone, as a transformer's mostly are
            stored = {"file": str(self.path())}  # has been read once, so it fits at the network's own size
            try:
                model = self._created(pretrained=True, pretrained_cfg_overlay=stored, img_size=size)
            except Exception:  # an architecture refuses a size, or the argument, by whatever it likes
                own = f"its own size is {self.own_size}: leave out rela.input_size"
                raise UserError(f"{error}; {own}") from error
            feature_dim(model, size, self.name)
        return model

    def fetch(self) -> None:
        if self.path().is_file():
            return
        try:
            model = self._created(pretrained=True)
        except Exception as error:  # the hub's client raises whatever its transport does
            raise MissingError(f"prior {self.name!r} cannot be downloaded: {describe_error(error)}") from error
        save_weights(model, self.path())

    def _created(self, **how: Any) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(self.argument, **how, **self.options)
        return model
