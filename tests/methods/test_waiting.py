"""On a GPU, a step is only handed over: no method of ours makes the host wait for a result in it."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.backbones import build_backbone
from methods import Batch, methods
from methods.rela import ReLA
from tests.methods.test_conformance import SMALL

READS = {f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")}


class Waits(TorchDispatchMode):
    """Notes the operations whose results the host would have to wait for, were the tensors on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name.startswith("aten::index") and isinstance(args[1], list)
        if by_mask and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.seen.add(f"{name} by a mask")
        if name in READS:
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


def test_what_waits_is_seen() -> None:
    values = torch.arange(3.0)
    with Waits() as waits:
        values[values > 1].sum().item()
    assert waits.seen == {"aten::index by a mask", "aten::_local_scalar_dense"}


@pytest.mark.parametrize("with_rela", [False, True], ids=["plain", "rela"])
@pytest.mark.parametrize("name", list(methods))
def test_no_step_waits_for_the_device(name: str, with_rela: bool, request: pytest.FixtureRequest) -> None:
    if name in {"simclr", "vicreg"} and not with_rela:
        reason = "lightly's loss picks entries by a mask: how many there are is known on the device alone"
        request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    backbone = build_backbone("resnet_small", 12)
    method = methods.get(name)(backbone.module, backbone.dim, **SMALL.get(name, {}))
    method = ReLA(method, 8, check_every=1000) if with_rela else method
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], fused=True)
    batch = Batch([torch.randn(16, 3, 12, 12) for _ in method.views], torch.arange(16) % 10, torch.randn(16, 8))
    with Waits() as waits:
        for _ in range(2):
            method.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()
            method.after_step()
    assert not waits.seen
