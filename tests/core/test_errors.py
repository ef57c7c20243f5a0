"""What an error of a library or a plugin says in one line: what is wrong, not where it was passed on."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from pydantic import BaseModel
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader, Dataset

from bench.core.errors import UserError, describe_error

FULL = "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"
TRACE = f"""Traceback (most recent call last):
  File "x.py", line 3, in <module>
    stack()
RuntimeError: {FULL}
and more of it"""


class Images(Dataset[int]):
    def __init__(self, error: Exception, cause: Exception | None = None) -> None:
        self.error, self.cause = error, cause

    def __getitem__(self, index: int) -> int:
        if self.cause is None:
            raise self.error
        try:
            raised(self.cause)
        except Exception as error:
            raise self.error from error

    def __len__(self) -> int:
        return 1


class Strict(BaseModel):
    version: int


class Empty(Exception):
    pass


def in_worker(error: Exception, cause: Exception | None = None) -> None:
    next(iter(DataLoader(Images(error, cause), num_workers=1)))


def mute() -> None:
    raise AssertionError


def caused(error: Exception, cause: BaseException) -> None:
    raise error from cause


def raised(error: Exception) -> None:
    raise error


ITSELF = OSError("its own")


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: in_worker(RuntimeError(FULL)), f"RuntimeError: {FULL}"),
        (lambda: in_worker(KeyError("one")), "KeyError: 'one'"),
        (
            lambda: in_worker(ValueError("outer"), OSError("the disk")),
            "ValueError: outer, because of OSError: the disk",
        ),
        (lambda: raised(ProcessRaisedException(f"\n\n-- Process 0 failed:\n{TRACE}", 0, 1)), f"RuntimeError: {FULL}"),
        (
            lambda: raised(RuntimeError(f"Job (task=0) failed during processing with trace:\n---\n{TRACE}\n---\n.")),
            f"RuntimeError: {FULL}",
        ),
        (
            lambda: raised(ExceptionGroup("unhandled", [ExceptionGroup("of one", [OSError("the disk")])])),
            "ExceptionGroup: unhandled (1 sub-exception), because of OSError: the disk",
        ),
        (lambda: caused(RuntimeError("failed"), OSError("the disk")), "RuntimeError: failed, because of OSError: the"),
        (lambda: caused(RuntimeError("OSError: x"), OSError("x")), "RuntimeError: OSError: x"),
        (lambda: caused(ITSELF, ITSELF), "OSError: its own"),
        (
            lambda: raised(RuntimeError("backend='inductor' raised:\nNoCompiler: no g++\n\nmore")),
            "raised: NoCompiler: no",
        ),
        (
            lambda: raised(RuntimeError("CUDA error: an illegal access\nCUDA kernel errors")),
            "CUDA error: an illegal acc",
        ),
        (lambda: raised(ExceptionGroup("a", [UserError("x.pt:\nfull")])), "because of x.pt: full"),
        (lambda: Strict.model_validate({"version": "new"}), "1 validation error for Strict version"),
        (
            lambda: torch.nn.Linear(1, 1).load_state_dict({"weight": torch.ones(1, 1)}),
            'Missing key(s) in state_dict: "b',
        ),
        (
            lambda: subprocess.run(
                [sys.executable, "-c", "import sys; sys.exit('a\\nno such queue')"], check=True, capture_output=True
            ),
            "returned non-zero exit status 1.: no such queue",
        ),
        (mute, "AssertionError in test_errors.py, line "),
        (lambda: raised(Empty()), "Empty in test_errors.py, line "),
    ],
)
def test_an_error_is_told_by_what_is_wrong(act: Callable[[], object], sentence: str) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        act()
    text = describe_error(caught.value)
    assert sentence in text
    assert "\n" not in text
    assert "Traceback" not in text
