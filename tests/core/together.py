"""`python together.py OUT`, alone or under torchrun: write each step's loss of every method and accelerator in float64.

In double precision rounding cannot grow into a difference, while Adam scales a gradient that is only rounding up.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.core.distributed import is_rank_zero, start, stop, synchronise_batch_norm
from bench.core.paths import Paths
from bench.core.seeds import generator
from bench.data import load_dataset
from bench.data.augment import View
from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.grid.cell import Protocol
from bench.measure.clock import Clock
from bench.models.backbones import build_backbone
from bench.train.loop import Trainer
from methods import Batch, Method, accelerators, methods
from methods.rela import ReLA
from tests.methods.small import around as accelerated
from tests.methods.small import backbone_for

CPU, SIZE, IMAGES, BATCH, STEPS, PHASE = torch.device("cpu"), 12, 64, 16, 7, 3
SMALL: dict[str, dict[str, Any]] = {
    "barlow_twins": {"projection": 16},
    "dino": {"hidden": 16, "outputs": 16},
    "dino_multicrop": {"hidden": 16, "outputs": 16},
    "dinov2": {"hidden": 16, "outputs": 16},
    "fastsiam": {"projection": 16, "bottleneck": 8},
    "frossl": {"hidden": 16, "projection": 8},
    "ibot": {"hidden": 16, "outputs": 16},
    "lejepa": {"hidden": 16, "projection": 8, "directions": 16},
    "mmcr": {"hidden": 16, "projection": 8, "pairs": 2},
    "moco": {"queue": 24},
    "mocov3": {"hidden": 16, "projection": 8},
    "msn": {"hidden": 16, "projection": 8, "prototypes": 16},
    "nnclr": {"hidden": 16, "projection": 8, "prediction": 16, "queue": 24},
    "ressl": {"hidden": 16, "projection": 8, "queue": 24},
    "simsiam": {"projection": 16, "bottleneck": 8},
    "smog": {"hidden": 16, "projection": 8, "groups": 8},
    "supervised": {"classes": 10},
    "swav": {"prototypes": 8, "queue": 24, "queue_after": 0},
    "swav_multicrop": {"prototypes": 8, "queue": 24, "queue_after": 0},
    "tico": {"hidden": 16, "projection": 8},
    "vicreg": {"projection": 16},
    "wmse": {"hidden": 16, "projection": 4, "sub_batch": 8},
}


class Double(InMemoryLoader):
    def batches(self, views: tuple[View, ...], order: Sampler, steps: range) -> Iterator[tuple[Tensor, list[Tensor]]]:
        for index, images in super().batches(views, order, steps):
            yield index, [image.double() for image in images]


@contextmanager
def float_is_double(kind: type[Method]) -> Iterator[None]:
    """Let `float()`, by which losses leave half precision, leave double precision as it is."""
    own = kind.loss

    def loss(self: Method, batch: Batch) -> Tensor:
        with patch.object(Tensor, "float", Tensor.double):
            return own(self, batch)

    with patch.object(kind, "loss", loss):
        yield


def wrapped(method: Method, around: str) -> Method:
    """Return the method inside ReLA, inside the accelerator of that name, or alone."""
    if around == "ReLA":
        return ReLA(method, 8, phase_steps=PHASE)
    return accelerated(around, method) if around else method


def train(name: str, around: str) -> dict[str, Any]:
    """Return the losses, and a number that all weights, buffers and the queue decide."""
    with tempfile.TemporaryDirectory() as folder:
        train = load_dataset("digits", Paths(Path(folder), Path(folder), "together")).train
    torch.manual_seed(0)
    backbone = build_backbone(backbone_for(around if around in accelerators else name), SIZE)
    method = methods.get(name)(backbone.module, backbone.dim, **SMALL.get(name, {}))
    method = wrapped(method, around).double()
    synchronise_batch_norm(method)
    source = Double(torch.from_numpy(train.images[:IMAGES]), torch.from_numpy(train.labels[:IMAGES]), SIZE, CPU)
    targets = torch.randn(IMAGES, 8, generator=generator(0, "targets")).double()
    trainer = Trainer(method, source, Sampler(IMAGES, 1.0, BATCH, 0), targets, Protocol(epochs=2), Clock(CPU))
    trainer.choose()
    losses = []
    with float_is_double(type(method)):
        for step in range(1, STEPS + 1):
            trainer.train(step, lambda: None)
            losses.append(trainer.loss)
    state = [v for v in method.state_dict().values() if isinstance(v, Tensor) and v.is_floating_point()]
    losses += trainer.mean_losses().values()
    found = {"losses": losses, "state": sum(value.double().abs().sum().item() for value in state)}
    return found | ({"switch": method.switch.fast.item()} if isinstance(method, ReLA) else {})


start("cpu")
pairs = [(name, around) for name in methods for around in ("", "ReLA")]
found = {" ".join(pair): train(*pair) for pair in (*pairs, *(("byol", around) for around in accelerators))}
if is_rank_zero():
    Path(sys.argv[1]).write_text(json.dumps(found))
stop()
os._exit(0)  # threads of torch's process groups may abort the end of the interpreter
