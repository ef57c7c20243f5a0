"""The command `rela-bench`: a unique package name that always starts this `bench`."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_HOME = next(folder for folder in Path(__file__).parents if (folder / "bench" / "__main__.py").is_file())
_spec = PathFinder.find_spec("bench", [str(_HOME)])
assert _spec
assert _spec.loader
sys.modules["bench"] = module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["bench"])

from bench.cli.main import main  # noqa: E402

__all__ = ["main"]
