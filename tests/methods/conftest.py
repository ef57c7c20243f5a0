"""What tests of several groups of methods share."""

import pytest
from torch import Tensor


@pytest.fixture
def float_is_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `float()`, by which losses leave half precision, leave double precision as it is."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
