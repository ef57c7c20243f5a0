"""Plugin files that are none: one sentence. What a plugin's code does is the user's own choice."""

import sys
from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import UserError
from bench.core.registry import load_plugin
from methods import methods

PLUGIN = b'''"""A plugin."""

from torch import Tensor

from bench.data.augment import View
from methods import Batch, Method, methods


@methods.register("hostile_test")
class Mine(Method):
    """A method."""

    views = (View(), View())

    def __init__(self, backbone, dim: int, weight: float = 1.0) -> None:
        super().__init__(backbone)
        self.weight = weight

    def loss(self, batch: Batch) -> Tensor:
        return self.weight * self.backbone(batch.views[0]).square().mean()
'''
PIECES = (
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"# coding: none\n",
        b"# coding: utf-16\n",
        b"(" * 300,
        b"\t",
        b"    ",
        b"'''",
        b'"',
    ),
    *(
        b"raise SystemExit(3)\n",
        b"raise KeyError\n",
        b"import nothing_here\n",
        b"1 / 0\n",
        b"async ",
        b"lambda: ",
        b"x = ",
    ),
    *(
        b"-" * 2000 + b"1\n",
        b"9" * 5000,
        b"\\",
        b"\r",
        b"\x0c",
        b"{",
        b"}",
        b"f'{",
        b"return\n",
        b"await x\n",
        b"\xe2\x80\xae",
    ),
    b'methods.register("byol")(int)\n',
)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch, temporary: Any) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    temporary(methods)


@pytest.mark.filterwarnings("ignore")
def test_a_plugin_is_loaded_or_refused(fuzz) -> None:
    path = fuzz.place / "mine.py"
    list(methods)

    def reads(content: bytes) -> bool:
        path.write_bytes(content)
        load_plugin(path)
        return True

    fuzz(fuzz.damaged(PLUGIN, PIECES), reads)


@pytest.mark.parametrize("name", ["", "x", "../x.py", "a\0.py", "x" * 10_000 + ".py", "folder.py", "loop.py"])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "loop.py").symlink_to("loop.py")
    with pytest.raises(UserError, match="no such file"):
        load_plugin(tmp_path / "y" / ".." / name if name else Path())


@pytest.mark.parametrize("suffix", ["", ".txt", ".pyc", ".so", ".yaml"])
def test_only_source_is_loaded(tmp_path: Path, suffix: str) -> None:
    """Compiled code that is damaged crashes Python."""
    (tmp_path / f"mine{suffix}").write_bytes(PLUGIN)
    with pytest.raises(UserError, match=r"must end in \.py"):
        load_plugin(tmp_path / f"mine{suffix}")
