"""Batch norm over processes is torch's and waits for no GPU, here in one process; two are in `test_distributed.py`."""

import copy

import pytest
import torch
from torch import nn

from bench.core.distributed import GlobalBatchNorm
from tests.methods.test_waiting import Waits

KINDS = [(nn.BatchNorm2d, (6, 3, 4, 4)), (nn.BatchNorm1d, (8, 3))]


@pytest.mark.parametrize(("kind", "shape"), KINDS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_torchs_and_waits_for_nothing(
    kind: type[nn.BatchNorm2d | nn.BatchNorm1d],
    shape: tuple[int, ...],
    affine: bool,
    dtype: torch.dtype,
    error: float,
    layout: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    torchs = kind(3, affine=affine).to(torch.promote_types(dtype, torch.float32))
    for parameter in torchs.parameters():
        nn.init.normal_(parameter)
    ours = copy.deepcopy(torchs)
    ours.__class__ = GlobalBatchNorm
    layout = layout if len(shape) == 4 else torch.contiguous_format
    images = (3 * torch.randn(shape) + 5).to(dtype).contiguous(memory_format=layout)
    gradient = torch.randn(shape).to(dtype)
    found = []
    with Waits() as waits:
        for each in (torchs, ours):
            own = images.clone().requires_grad_()
            out = each(own)
            out.backward(gradient)
            assert out.dtype == dtype
            assert out.stride() == images.stride()
            found.append([out, own.grad, *(p.grad for p in each.parameters()), *each.state_dict().values()])
    assert not waits.seen
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=error, atol=error)
