"""A cell's method around its backbone, with the initial weights of the cell's seed."""

import torch

from bench.core.seeds import derive
from bench.grid.cell import Cell
from bench.models.backbones import Backbone, initial_backbone
from methods.base import Method
from methods.registry import accelerators, methods
from methods.rela import ReLA


def build_method(
    cell: Cell,
    size: int,
    target_dim: int | None,
    steps_per_epoch: int,
    rehearsal: bool = False,
    backbone: Backbone | None = None,
) -> Method:
    """Return the cell's method; the backbone's initial weights are the same for all arms of a seed.

    `target_dim` is the dimension of the targets of a cell with a prior. An adaptive phase, which takes hundreds of
    steps, ends halfway in a rehearsal. `backbone`: what training begins with, where that is another one.
    """
    with torch.random.fork_rng(devices=[]):
        backbone = backbone or initial_backbone(cell.backbone, size, cell.seed)
        torch.manual_seed(derive(cell.seed, "method"))
        method = methods.build(cell.method, backbone.module, backbone.dim, cell.params)
        if cell.rela:
            assert target_dim is not None
            torch.manual_seed(derive(cell.seed, "map"))
            phase = 0.5 if rehearsal and cell.rela.phase == "adaptive" else cell.rela.phase
            length = None if phase == "adaptive" else int(phase * cell.protocol.epochs + 1e-9) * steps_per_epoch
            method = ReLA(method, target_dim, length, cell.rela.train_map, cell.rela.check_every, cell.rela.then)
        if choice := cell.accelerate:
            torch.manual_seed(derive(cell.seed, "accelerator"))
            method = accelerators.build(choice.name, method, target_dim if choice.prior else None, choice.params)
        return method
