"""The harness: grid -> cells -> runner -> train -> evaluate -> store -> report."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"


class _Beside:
    """Find our `methods` and `priors`, which are next to this package, before other packages of these names."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        ours = name in {"methods", "priors"}
        return PathFinder.find_spec(name, [str(Path(__file__).parent.parent)]) if ours else None


sys.meta_path.insert(0, _Beside)
