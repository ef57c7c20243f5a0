"""A rehearsal: every cell of a grid, end to end on a CPU in minutes, before anyone spends GPU-weeks on it.

The graph, the loaders, the networks of backbones and priors, the methods, both phases of ReLA, checkpoints, records and
the report are the real ones. The steps are a handful, priors have random weights, and a dataset that is not here is
stood in for by small noise images on disk. Its numbers mean nothing: its records live apart, carry a
mark, and never enter a real report.
"""

import functools
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.core.errors import PluginError, describe_error
from bench.core.paths import Paths
from bench.data import Split, find_dataset, image_size
from bench.grid.cell import Cell, trained_on
from bench.models.backbones import build_backbone
from bench.plan.graph import Missing, Ready, Task
from priors import Prior
from priors.catalogue import CATALOGUE

FURTHER = 40  # images of a dataset that only an evaluation needs
NOISE_SIZE = 64  # pixels of a stand-in for images of no fixed size


def stage(paths: Paths, grid: str) -> Paths:
    """Return where the rehearsal of a grid takes place: among its own records, with a data root of its own."""
    return Paths(paths.results / grid / ".data", paths.results, grid, rehearsal=True)


def lay_out(cells: Iterable[Cell], data: Path, to: Path) -> None:
    """Make `to` a data root with all that is in `data`, as links, and a stand-in for each dataset that is not.

    Raises UserError when a dataset has no stand-in: one that is not registered is known by its folder alone.
    """
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    count: dict[str, int] = defaultdict(int)
    for cell in cells:
        count[cell.dataset] = max(count[cell.dataset], cell.train_images or 0)
        for name in (name for each in cell.protocol.evaluate for name in each.needs):
            count[name] = max(count[name], FURTHER)
    for name, images in count.items():
        with suppress(PluginError):  # the plan of its cells says so
            info = find_dataset(name, data)
            if not info.here(data):
                classes = info.classes or 2
                size = info.image_size or NOISE_SIZE
                info.write(to, _noise(max(images, classes), classes, size, 0), _noise(classes, classes, size, 1))
    for entry in data.iterdir() if data.is_dir() else ():
        # Neither the cache of real targets and images, nor the place of a stand-in: nothing is written through a link.
        if entry.name != "cache" and not (to / entry.name).exists():
            (to / entry.name).symlink_to(entry.absolute(), target_is_directory=entry.is_dir())


def _noise(count: int, classes: int, size: int, seed: int) -> Split:
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % classes)


def obstacles(tasks: Sequence[Task], paths: Paths) -> dict[str, list[Task]]:
    """Return the tasks of the real grid that would fail here, by the reason.

    Reasons: data or weights that are not here, weights that do not load, a disk with too little room for what the cells
    write, a memory that does not hold a dataset and its targets.
    """
    found: dict[str, list[Task]] = defaultdict(list)
    unfit: dict[str | None, str] = {}  # by the prior's digest
    for task in tasks:
        if isinstance(task, Missing):
            found[task.reason].append(task)
        elif isinstance(task, Ready) and (not task.needs or task.cell.matches):
            for prior, digest in ((task.prior, task.inputs.prior), (task.start, task.inputs.warm_start)):
                if digest not in unfit:
                    unfit[digest] = _unfit(prior) if prior else ""
                if reason := unfit[digest]:
                    found[reason].append(task)
    needs = list(_needs(tasks, paths))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder, kind in ((paths.records, "backbone"), (paths.cache, "targets")):
        free = shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).free
        written = {need.task.cell.key(): size for need in needs if (size := getattr(need, kind))}
        if (size := sum(written.values())) > free:
            reason = f"{folder}: {_gb(size)} will be written there and {_gb(free)} are free"
            found[reason] = [task for task in tasks if task.cell.key() in written]
    for need in needs:
        if need.memory > memory:
            sizes = f"take {_gb(need.memory)} of memory and there are {_gb(memory)}"
            found[f"{need.task.cell.dataset}: images and targets {sizes}"].append(need.task)
    return dict(found)


def _unfit(prior: Prior) -> str:
    """Return why a prior's weights do not load, "" when they do."""
    try:
        prior.model()
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        return describe_error(error)
    return ""


@dataclass(frozen=True)
class _Need:
    """Bytes that a cell needs: backbone and targets on disk, and images and targets in memory."""

    task: Task
    backbone: int
    targets: int
    memory: int


def _needs(tasks: Sequence[Task], paths: Paths) -> Iterator[_Need]:
    """Yield what the cells need; of those that share their targets, the first is charged for them."""
    made = set()
    for task in tasks:
        with suppress(PluginError):  # which is a reason by itself
            cell, choice, count = task.cell, task.cell.targets_of, task.train_images or 0
            info, size = find_dataset(cell.dataset, paths.data), image_size(cell, paths)
            weights, dim = _network(cell.backbone, size)
            targets = 4 * count * dim if choice else 0
            memory = 0 if info.streams else targets + count * 3 * (info.image_size or size) ** 2
            if choice:
                own = task.needs or "rand" in (choice.prior, *choice.ensemble)  # a prior of its own for each seed
                which = (choice.named, choice.weights_key, own and cell.seed)
                shared = (cell.dataset, cell.train_images, cell.backbone, *which)
                if info.streams:  # its targets are made of the prior's features, in shards on the same disk
                    targets += 4 * count * _features(task, size, dim)
                targets = 0 if shared in made else targets
                made.add(shared)
            yield _Need(task, weights, targets, memory)


def _features(task: Task, size: int, dim: int) -> int:
    """Return the dimension of the features of a task's priors; where nobody knows it, as many as its backbone's."""
    choice, total = task.cell.targets_of, 0
    for prior in (choice.prior, *choice.ensemble) if choice else ():
        if task.needs and trained_on(prior):
            total += _network(task.needs.cell.backbone, size)[1]
        else:
            total += (CATALOGUE[prior].dim if prior in CATALOGUE else None) or dim
    return total


@functools.cache
def _network(name: str, size: int) -> tuple[int, int]:
    """Return the bytes of a backbone's weights in float32 and the dimension of its features."""
    backbone = build_backbone(name, size)
    return 4 * sum(parameter.numel() for parameter in backbone.module.parameters()), backbone.dim


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
