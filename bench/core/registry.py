"""Named things that can be added from outside: methods, datasets, backbones, kinds of priors."""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.core.errors import PluginError, UserError, describe_error, did_you_mean
from bench.core.paths import is_file

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name.

    A name comes from `@registry.register("name")` in a module of `package`, in a `--plugin` file, or from an
    entry point of `group`. The package's modules are imported when a name is first asked for; an entry point
    only when its own name is, so that a broken one harms nobody else. Things are classes below `contract`, if given.
    """

    def __init__(self, kind: str, package: str, group: str | None = None, contract: type | None = None) -> None:
        self.kind, self.package, self.group, self.contract = kind, package, group, contract
        self._items: dict[str, T] = {}
        self._entry_points: dict[str, EntryPoint] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds `item` under `name`. Raises UserError when the name is taken by another one."""

        def add(item: T) -> T:
            taken = self._items.get(name)
            if taken is not None and getattr(taken, "__module__", "") != getattr(item, "__module__", ""):
                raise UserError(f"{self.kind} {name!r} is defined twice, in {taken.__module__} and {item.__module__}")
            self._items[name] = item
            return item

        return add

    @contextmanager
    def temporary(self, **items: T) -> Iterator[None]:
        """Know these items too, and forget at the end all that was registered meanwhile: for tests."""
        self._load()
        before = dict(self._items)
        self._items.update(items)
        try:
            yield
        finally:
            self._items.clear()
            self._items.update(before)

    def get(self, name: str) -> T:
        """Return the item called `name`.

        Raises UserError with the nearest known name, and PluginError when what has that name is not what it should be.
        """
        self._load()
        if name not in self._items and name in self._entry_points:
            point = self._entry_points[name]
            try:
                self._items[name] = point.load()
            except (Exception, SystemExit) as error:
                raise PluginError(
                    f"{self.kind} {name!r}: entry point {point.value!r} fails to import: {describe_error(error)}"
                ) from error
        if name not in self._items:
            raise UserError(f"unknown {self.kind} {name!r}{did_you_mean(name, self)}")
        item = self._items[name]
        if self.contract and not (isinstance(item, type) and issubclass(item, self.contract)):
            raise PluginError(f"{self.describe(item)}: must be a subclass of {self.contract.__name__}")
        return item

    def describe(self, item: Any) -> str:
        """Return the kind and the name of an item, and the file that defines it where that is known, for messages."""
        name = next((name for name, known in self._items.items() if known is item), getattr(item, "__name__", ""))
        with suppress(TypeError, OSError):  # of Python's own, or typed in
            return f"{self.kind} {name!r} ({inspect.getsourcefile(item)})"
        return f"{self.kind} {name!r}"

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted({*self._items, *self._entry_points}))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._items or name in self._entry_points

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        root = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(getattr(root, "__path__", []), prefix=f"{self.package}."):
            importlib.import_module(module.name)
        if self.group:
            self._entry_points = {point.name: point for point in entry_points(group=self.group)}


def load_plugin(path: Path) -> None:
    """Import the Python file at `path`, which registers what it defines. Raises UserError when it cannot."""
    if not is_file(path):
        raise UserError(f"--plugin {path}: no such file")
    if path.suffix != ".py":  # Python would load compiled code, too
        raise UserError(f"--plugin {path}: not a Python file (it must end in .py)")
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]  # two files may have one name
    name = f"rela_bench_plugin_{path.stem}_{place}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"--plugin {path}: {describe_error(error)}") from error
