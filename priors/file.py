"""Weights from a file as a prior."""

from pathlib import Path

from torch import nn

from bench.core.errors import Lack, MissingError, UserError
from bench.core.paths import expanded
from bench.data import image_size
from bench.models.backbones import build_backbone
from priors.base import Stored, file_digest, priors
from priors.catalogue import SHIPPED


@priors.register("file")
class File(Stored):
    """`file:<path>`: weights as safetensors or as a state dict; the arm's `rela.backbone` names its architecture.

    A relative path is looked up from here, in `<data root>/priors`, and among the weights that come with the package. A
    classifier in the file is left out. Where the file holds the network more than once, as a student and a teacher,
    `rela.weights_key` names the prefix of one.
    """

    def path(self) -> Path:
        paths = [expanded(self.argument), self.paths.data / "priors" / self.argument]
        for path in (*paths, SHIPPED / self.argument):
            if path.is_file():
                return path
        looked = " and ".join(str(path.absolute()) for path in dict.fromkeys(paths))
        raise MissingError(
            f"prior 'file:{self.argument}' is not there: looked for {looked}",
            Lack(f"prior file:{self.argument}", f"put it into {paths[-1].parent}"),
        )

    def digest(self) -> str:
        key = f"-{self.key()}" if self.key() is not None else ""
        return f"{file_digest(self.path())}-{self._architecture()}{key}"

    def key(self) -> str | None:
        return self.cell.targets_of.weights_key if self.cell.targets_of else None

    def untrained(self) -> nn.Module:
        size = self.input_size or image_size(self.cell, self.paths)
        return build_backbone(self._architecture(), size).module

    def _architecture(self) -> str:
        name = self.cell.targets_of.backbone if self.cell.targets_of else None
        if name is None:
            raise UserError(
                f"prior 'file:{self.argument}': {self.cell.targets_key}.backbone must name the architecture of the file"
            )
        return name
