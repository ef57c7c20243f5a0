"""The backbone of a cell of the same grid as a prior."""

from pathlib import Path

from torch import nn

from bench.core.errors import MissingError
from bench.core.paths import Paths
from bench.grid.cell import Cell
from bench.models.backbones import build_backbone
from priors.base import Stored


class Trained(Stored):
    """`<DATASET>-T`: the backbone of the BYOL cell at the full budget on that dataset, of the same grid and seed.

    It is not in the registry: the plan links it to the cell that makes it.

    Args:
        maker: the cell that trains the backbone.
        maker_id: its id, which stands for the weights.
        size: pixels of the images that it is trained on.
    """

    def __init__(self, maker: Cell, maker_id: str, size: int, cell: Cell, paths: Paths) -> None:
        super().__init__("", cell, paths)
        self.maker, self.maker_id = maker, maker_id
        self.input_size = self.size = size

    def digest(self) -> str:
        return self.maker_id

    def path(self) -> Path:
        path = self.paths.backbone(self.maker_id)
        if not path.is_file():
            raise MissingError(f"the backbone that cell {self.maker_id} trained is not there: looked for {path}")
        return path

    def untrained(self) -> nn.Module:
        return build_backbone(self.maker.backbone, self.size).module
