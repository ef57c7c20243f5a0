"""Several processes that train one cell together, each on its share of every batch (`torchrun`)."""

import torch
from lightly.utils import dist
from torch import Tensor


def gather(rows: Tensor) -> Tensor:
    """Return the rows of all processes in the order of the global batch, with gradient; in one process `rows`.

    A loss that compares samples with one another gathers what it compares; each process then has the loss of the
    global batch, and the harness averages gradients over processes.
    """
    return torch.cat(dist.gather(rows)) if dist.world_size() > 1 else rows
