"""Bare: the forward and backward passes that a method cannot avoid, on tensors that are there, and nothing else."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead
from torch import Tensor, nn

from bench.models.backbones import build_backbone

TARGETS = 128  # the dimension of ReLA's targets


def bare(
    method: str, backbone: str, views: list[Tensor], autocast: Callable[[], AbstractContextManager[object]]
) -> Callable[[], None]:
    """Return what does the passes of one step of `byol`, `simclr` or `rela` on two views (B, 3, size, size).

    BYOL: both views through the student with gradient, and through a frozen copy without. SimCLR: both through the
    network and its head. ReLA: both through the network and a linear map.
    """
    network = build_backbone(backbone, views[0].shape[-1])
    dim = network.dim
    head = {
        "byol": nn.Sequential(BYOLProjectionHead(dim, 2 * dim, 256), BYOLPredictionHead(256, 2 * dim, 256)),
        "simclr": SimCLRProjectionHead(dim, dim, 128),
        "rela": nn.Linear(dim, TARGETS).requires_grad_(False),
    }[method]
    student = nn.Sequential(network.module, head).to(views[0].device).to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(nn.Sequential(network.module, head[0])) if isinstance(head, nn.Sequential) else None
    seen = [view.contiguous(memory_format=torch.channels_last) for view in views]

    def passes() -> None:
        with autocast():
            outs = [student(view) for view in seen]
            if teacher:
                with torch.no_grad():
                    for view in seen:
                        teacher(view)
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
        student.zero_grad()

    return passes
