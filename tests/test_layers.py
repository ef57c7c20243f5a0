"""Which way imports point: each layer imports only what is below it, and packages that share a layer not each other."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = """
bench.cli
bench.check
bench.toy
bench.report bench.run
bench.train
bench.targets bench.evaluate
bench.plan
methods priors
bench.store bench.data
bench.models bench.measure bench.grid
bench.core
"""
FLOOR = {name: floor for floor, line in enumerate(reversed(LAYERS.split("\n"))) for name in line.split()}


def package(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "bench" else 1])


def imported(source: str) -> Iterator[str]:
    """Yield the modules that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{each.name}" for each in node.names)
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names)


def forbidden(module: str, source: str) -> list[str]:
    """Return the packages that a module may not import, and imports."""
    own = package(module)
    others = {package(each) for each in imported(source)} - {own}
    return sorted(each for each in others if each in FLOOR and FLOOR[each] >= FLOOR[own])


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
    for top in ("bench", "methods", "priors")
    for path in (ROOT / top).rglob("*.py")
    if "console" not in path.parts
}


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"bench.__init__", "bench.__main__"}))
def test_a_module_imports_what_is_below_it(module: str) -> None:
    assert forbidden(module, MODULES[module]) == []


def test_an_import_upwards_is_seen() -> None:
    assert forbidden("bench.core.files", "def f():\n    from bench.train.loop import Trainer") == ["bench.train"]
    assert forbidden("bench.report.facts", "import bench.run.runner") == ["bench.run"]
    assert forbidden("methods.byol", "from methods.base import Batch\nfrom bench.core.seeds import derive") == []


def test_every_package_has_its_layer() -> None:
    packages = {package(module) for module in MODULES} - {"bench.__init__", "bench.__main__"}
    assert packages == set(FLOOR)


def long_functions(source: str) -> list[str]:
    """Return the names of the functions of more than 40 lines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [each.name for each in functions if (each.end_lineno or 0) - each.lineno >= 40]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_function_fits_a_screen_and_a_module_is_short(module: str) -> None:
    assert long_functions(MODULES[module]) == []
    assert MODULES[module].count("\n") <= 300


def test_a_method_is_short() -> None:
    lengths = [text.count("\n") for text in MODULES.values() if "\n@methods.register(" in text]
    assert statistics.median(lengths) <= 45


def test_an_accelerator_fits_60_lines() -> None:
    lengths = {name: text.count("\n") for name, text in MODULES.items() if "\n@accelerators.register(" in text}
    assert "methods.simreg" in lengths
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_a_long_function_is_seen() -> None:
    body = "    pass\n"
    assert long_functions("def f():\n" + 39 * body) == []
    assert long_functions("class C:\n  def g(self):\n" + 40 * body) == ["g"]
