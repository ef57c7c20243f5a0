"""On a GPU, a step is only handed over: no method of ours makes the host wait for a result in it."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.grid.cell import Protocol
from bench.measure.clock import Clock
from bench.models.backbones import build_backbone
from bench.train.loop import Trainer
from methods import Batch, Method, Queue, accelerators, methods
from methods.byol import BYOL
from methods.rela import ReLA
from tests.methods.small import around, backbone_for
from tests.methods.test_conformance import SMALL

# The last one makes a tensor of the host's values: of the CPU, which no CUDA graph may read, or sent from there.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "lift_fresh")
READS = {f"aten::{name}" for name in WAITS}


class Waits(TorchDispatchMode):
    """Notes the operations whose results the host would have to wait for, were the tensors on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.count += not func.is_view
        by_mask = name.startswith("aten::index") and isinstance(args[1], list)
        if by_mask and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.seen.add(f"{name} by a mask")
        if name in READS:
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


NAMES = ("name", "with_rela")
METHODS = [(name, with_rela) for name in methods for with_rela in (False, True)]
EACH = pytest.mark.parametrize(NAMES, [*METHODS, *((name, False) for name in accelerators)])


def test_what_waits_is_seen() -> None:
    values = torch.arange(3.0)
    with Waits() as waits:
        values[values > 1].sum().item()
        torch.tensor(0.5)
    assert waits.seen == {"aten::index by a mask", "aten::_local_scalar_dense", "aten::lift_fresh"}


def build(name: str, with_rela: bool) -> Method:
    """Return the method, inside ReLA or not, or the accelerator of that name."""
    backbone = build_backbone(backbone_for(name), 12)
    if name in accelerators:
        return around(name, BYOL(backbone.module, backbone.dim))
    method = methods.get(name)(backbone.module, backbone.dim, **SMALL.get(name, {}))
    return ReLA(method, 8, check_every=1000) if with_rela else method


def batch_for(method: Method) -> Batch:
    sizes = [view.pixels(12) for view in method.views]
    return Batch([torch.randn(16, 3, size, size) for size in sizes], torch.arange(16) % 10, torch.randn(16, 8))


@EACH
def test_no_step_waits_for_the_device(name: str, with_rela: bool) -> None:
    method = build(name, with_rela)
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], fused=True)
    batch = batch_for(method)
    with Waits() as waits:
        for step in range(2):
            method.before_step(step, 2)
            method.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()
            method.after_step()
    assert not waits.seen


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kinds"), [("byol", 1), ("dino", 1), ("moco", 1), ("swav", 2)])
def test_a_loss_is_compiled_once_for_each_kind_of_step(name: str, kinds: int) -> None:
    method, graphs = build(name, with_rela=False), list[torch.fx.GraphModule]()

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    loss, batch = torch.compile(method.loss, backend=keep), batch_for(method)
    for _ in range(4):
        loss(batch)
        method.after_step()
    assert len(graphs) == kinds


def host_state(method: Method) -> dict[str, object]:
    """What a method has on the host: plain values, which tensors are its own and where they are, states of chance.

    Not what a queue keeps until the step ends, which the trainer hands over.
    """
    values = {
        f"{name}.{key}": id(value) if isinstance(value, torch.Tensor) else repr(value)
        for name, module in method.named_modules()
        for key, value in vars(module).items()
        if not (key.startswith("_") or (isinstance(module, Queue) and key == "kept"))
    }
    tensors = {name: each.data_ptr() for name, each in (*method.named_parameters(), *method.named_buffers())}
    chance = [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]
    return values | tensors | {"chance": chance}


@EACH
def test_a_loss_that_a_gpu_records_leaves_the_host_as_it_was(name: str, with_rela: bool) -> None:
    method = build(name, with_rela)
    batch, before = batch_for(method), host_state(method)
    method.loss(batch)
    assert method.recordable == (host_state(method) == before)


def test_a_loss_written_anew_is_recorded_only_when_it_says_so() -> None:
    class Another(BYOL):
        def loss(self, batch: Batch) -> torch.Tensor:
            return super().loss(batch)

    class Moved(BYOL):
        def after_step(self) -> None:
            pass

    class Said(Another):
        recordable = True

    backbone = build_backbone("resnet_small", 12)
    assert [each(backbone.module, backbone.dim).recordable for each in (Another, Moved, Said)] == [False, True, True]


# Operations of a loss, its gradients and what follows the step around `resnet_small`, or `vit_micro` for a method that
# needs tokens, each of them a launch where a GPU records none: counted with torch 2.14, which is held to them.
OPERATIONS = {
    "barlow_twins": 314,
    "byol": 454,
    "dcl": 319,
    "dclw": 325,
    "dino": 447,
    "dino_multicrop": 611,
    "dinov2": 661,
    "fastsiam": 677,
    "frossl": 353,
    "ibot": 302,
    "ijepa": 365,
    "lejepa": 316,
    "mae": 217,
    "mmcr": 524,
    "moco": 200,
    "mocov3": 465,
    "msn": 510,
    "nnclr": 376,
    "ressl": 202,
    "simclr": 307,
    "simmim": 163,
    "simsiam": 361,
    "smog": 266,
    "supervised": 103,
    "swav": 377,
    "swav_multicrop": 806,
    "tico": 215,
    "vicreg": 381,
    "wmse": 322,
}
OF_RELA = {"resnet_small": 286, "vit_micro": 390}
SLACK = 2 if torch.__version__.startswith("2.14.") else 90  # other versions count a little differently


@pytest.mark.parametrize(NAMES, METHODS)
def test_no_step_takes_more_operations_than_it_did(name: str, with_rela: bool) -> None:
    method = build(name, with_rela)
    batch = batch_for(method)
    with Waits() as waits:
        method.loss(batch).backward()  # type: ignore[no-untyped-call]
        method.after_step()
    assert waits.count <= SLACK + (OF_RELA[backbone_for(name)] if with_rela else OPERATIONS[name])


@pytest.mark.cuda
@EACH
def test_training_never_waits_for_a_gpu_within_an_epoch(name: str, with_rela: bool) -> None:
    device = torch.device("cuda")
    images = torch.randint(0, 256, (160, 3, 12, 12), dtype=torch.uint8)
    source = InMemoryLoader(images, torch.arange(160) % 10, 12, device)
    method = build(name, with_rela).to(device)
    targets = torch.randn(160, 8, device=device)
    trainer = Trainer(method, source, Sampler(160, 1.0, 16, 0), targets, Protocol(precision="bf16"), Clock(device))

    def watch() -> None:  # the first step counts FLOPs, the fourth is recorded, the last looks at the loss
        torch.cuda.set_sync_debug_mode("error" if 4 <= trainer.step < 9 else "default")

    try:
        trainer.train(10, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.step == 10
