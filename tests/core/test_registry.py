"""Things that installed packages add by entry points."""

from pathlib import Path

import pytest

from bench.core.errors import UserError
from bench.core.registry import Registry
from methods import Method

METHOD = """
from bench.data.augment import View
from methods import Method

class Mine(Method):
    views = (View(),)
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[type[Method]]:
    """The registry of methods as a process sees it that has a package with two entry points installed."""
    (tmp_path / "their_package.py").write_text(METHOD)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    lines = ["[rela_bench.methods]", "mine = their_package:Mine", "broken = their_package:Nobody"]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    return Registry("method", package="methods", group="rela_bench.methods")


def test_a_method_of_an_installed_package_is_found_by_name(registry: Registry[type[Method]]) -> None:
    assert "mine" in registry
    assert list(registry)[:2] == ["broken", "mine"], "the built-in ones registered with another registry object"
    assert issubclass(registry.get("mine"), Method)


def test_a_broken_entry_point_harms_only_its_own_name(registry: Registry[type[Method]]) -> None:
    assert registry.get("mine").__name__ == "Mine"
    with pytest.raises(UserError, match=r"method 'broken': entry point 'their_package:Nobody' fails to import"):
        registry.get("broken")


def test_one_name_is_one_thing(registry: Registry[type[Method]]) -> None:
    registry.register("mine")(registry.get("mine"))
    with pytest.raises(UserError, match="is defined twice"):
        registry.register("mine")(Method)
