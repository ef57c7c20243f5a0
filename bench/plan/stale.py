"""Which results are stale: the code that decides their numbers has changed since, in a way that may change them."""

import importlib
import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.core.errors import UserError
from bench.grid.cell import Cell, trained_on
from bench.measure.code import Code, Place
from bench.store.record import Finished

SAME = Path(__file__).with_name("same.json")  # lists of digests of code that gives equal results, bit for bit
SHARED = (
    *(f"bench.core.{name}" for name in ("device", "distributed", "graphs", "seeds")),
    *(f"bench.data.{name}" for name in ("augment", "decode", "resample")),
    "bench.measure.flops",
)
REGISTRIES = {  # the folder whose files register names, and the module of the registry
    "methods": ("methods", "methods.registry"),
    "accelerators": ("methods", "methods.registry"),
    "backbones": ("bench/models", "bench.models.backbones"),
    "priors": ("priors", "priors.base"),
}


@dataclass(frozen=True)
class Part:
    """A part of the code.

    Args:
        roots: definitions, each line a module and names in it; what these use is followed in their own modules.
        within: where else it is followed, beside SHARED.
        registry: in which a cell names another root.
    """

    roots: tuple[str, ...]
    within: tuple[str, ...] = ()
    registry: str | None = None

    def places(self) -> list[Place]:
        """Return the roots that all cells have."""
        return [(module, name) for module, *names in map(str.split, self.roots) for name in names]


PARTS = {
    "method": Part((), ("methods",), "methods"),
    "ReLA": Part(("methods.rela ReLA",), ("methods",)),
    "accelerator": Part((), ("methods",), "accelerators"),
    "views": Part(
        (
            "bench.data.loader InMemoryLoader StreamingLoader",
            "bench.data.images open_images",
            "bench.data.sampler Sampler",
            "bench.data.dataset balanced_part",
        )
    ),
    "training": Part(
        (
            "bench.train.loop Trainer",
            "bench.train.cell _trainer _matched_steps CellRun.train CellRun._evaluation_steps CellRun._time_is_spent",
            "bench.data.sampler total_steps evaluation_steps",
            "methods.build build_method",
        ),
        ("bench.train.recipe",),
    ),
    "backbone": Part(("bench.models.backbones initial_backbone",), (), "backbones"),
    "evaluation": Part(
        (
            "bench.evaluate.score score",
            "bench.evaluate.features extract",
            "bench.train.cell CellRun._evaluated",
            "bench.data.loader InMemoryLoader.eval_batches StreamingLoader.eval_batches",
        ),
        ("bench.evaluate.knn", "bench.evaluate.linear_probe"),
    ),
    "targets": Part(
        ("bench.targets.make make_targets values_for", "bench.targets.stream stream_targets"), ("bench.targets.reduce",)
    ),
    "prior": Part((), ("priors",), "priors"),
    "layer and ensemble": Part(("priors.joined AtLayer Joined",), ("priors",)),
    "warm start": Part(("bench.train.start starting_backbone",), ("priors",), "priors"),
}


HERE = Code(Path(__file__).parents[2])  # nothing of it is read yet


def code_of(cell: Cell, code: Code = HERE) -> dict[str, str]:
    """Return the digest of each part of the code that decides a cell's numbers, as far as it can be found here."""
    names = {"method": cell.method, "views": "", "training": "", "backbone": cell.backbone, "evaluation": ""}
    if cell.rela:
        names["ReLA"] = ""
    if cell.accelerate:
        names["accelerator"] = cell.accelerate.name
    if cell.targets_of:
        names |= {"targets": "", "prior": cell.targets_of.prior}
        if cell.targets_of.layer or cell.targets_of.ensemble:
            names["layer and ensemble"] = ""
    if cell.warm_start:
        names["warm start"] = cell.warm_start
    digests = {part: _digest(code, part, name) for part, name in names.items()}
    return {part: digest for part, digest in digests.items() if digest}


def stale_parts(record: Finished, code: Code = HERE) -> tuple[str, ...]:
    """Return the parts of the code that have changed since a result; none where that is not known."""
    now = code_of(record.cell, code) if record.code else {}
    return tuple(part for part, then in (record.code or {}).items() if part in now and not _equal(then, now[part]))


def changed_text(records: Iterable[Finished]) -> str:
    """Return that the code of some results has changed since, and which parts of it; "" where none has."""
    parts = list(dict.fromkeys(part for record in records for part in stale_parts(record)))
    words = " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
    return f"the code of {words} has changed since" if parts else ""


def digest(code: Code, part: str, name: str) -> str | None:
    """Return the digest of a part with what has a name in its registry; None where that is not known.

    Raises OSError, SyntaxError, ValueError on a file that cannot be read, UserError on a broken plugin.
    """
    kind = PARTS[part]
    named = _named(code, kind.registry, name) if kind.registry else ()
    if not named and kind.registry not in {None, "backbones"}:  # of which timm has others
        return None
    return code.digest([*kind.places(), *named], (*kind.within, *SHARED))


def _named(code: Code, registry: str, name: str) -> Sequence[Place]:
    """Return the definitions of what has a name in a registry, in our files or in a plugin's."""
    (folder, module), key = REGISTRIES[registry], name.partition(":")[0]
    if place := code.registered(folder, registry).get(key):
        return [place]
    if registry == "priors" and (entry := code.registered(folder, "_ENTRIES").get(key)):
        return [entry, ("priors.named", "Named"), ("priors.named", "NamedTimm")]
    if registry == "priors" and trained_on(name):
        return [("priors.trained", "Trained")]
    # Whoever has a plugin has imported its registry; an entry point of a method has not to be imported by then.
    known = importlib.import_module(module) if folder == "methods" else sys.modules.get(module)
    if known is None or key not in (there := getattr(known, registry)):
        return []
    item = there.get(key)
    file = inspect.getsourcefile(item)
    place = (str(file), item.__qualname__)
    return [place if code.defines(place) else (place[0], "")]


def _equal(one: str, other: str) -> bool:
    return one == other or any({one, other} <= group for group in _groups())


@cache
def _groups() -> list[set[str]]:
    return [set(group) for group in json.loads(SAME.read_text(encoding="utf-8"))]


@cache
def _digest(code: Code, part: str, name: str) -> str | None:
    with suppress(OSError, SyntaxError, TypeError, ValueError, UserError):  # no source, or a broken plugin
        return digest(code, part, name)
    return None
