"""Targets of a set that is too large for memory: features in shards on disk, two passes over them, rows in a file.

What is in memory at a time is a shard of features, a few matrices (p, p), and no more, however many images there are.
"""

import functools
import itertools
import operator
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.core.environment import give_back_memory
from bench.core.errors import DamagedFile, UserError
from bench.core.files import atomic_write
from bench.measure.clock import Clock, Spent
from bench.targets.cache import NAME, Cost, Targets, described, load_targets, writing
from bench.targets.reduce import PART, Moments
from bench.targets.rows import read_rows, write_rows

SHARD = 8192  # images of a shard: 64 MiB of 2,048 features

Batches = Callable[[int], Iterator[tuple[Tensor, int]]]


@dataclass(frozen=True)
class Shard:
    """A file with the features of some images: which is the first, and how many there are."""

    path: Path
    first: int
    images: int

    def read(self) -> tuple[Tensor, Cost] | None:
        """Return the features float32 (images, p) and their cost; None when they are not there whole and unchanged."""
        if not self.path.is_file():
            return None
        try:
            rows, known = read_rows(self.path, "features", self.images)
            return rows.in_memory(), Cost.model_validate_json(known["cost"])
        except (DamagedFile, LookupError, ValueError):
            return None

    def write(self, values: Tensor, cost: Cost) -> None:
        """Write features and their cost, atomically. Raises UserError where the disk refuses."""
        known = {"cost": cost.model_dump_json()}
        with writing(self.path.parent), atomic_write(self.path) as file:
            write_rows(file, "features", (self.images, values.shape[1]), [values], lambda: known)


def stream_targets(
    features: Batches,
    count: int,
    dim: int,
    path: Path,
    clock: Clock,
    after_shard: Callable[[int], None] = lambda images: None,
    shard: int = SHARD,
    maker: str = "",
) -> Targets:
    """Make the targets of `count` images, write them to `path` and return its rows: `reduce_features`, streamed.

    The mean and the covariance come from one pass over the features, the targets from a second one. In between the
    features lie beside `path`, in shards of so many images, a whole number of batches: a run that was killed goes on
    after its last whole shard, to the same targets bit for bit. `features` yields the features float32 (b, p) from an
    image on, and the FLOPs that they took. `after_shard` is told how many images are on disk; it may raise to stop
    there. Raises UserError when the disk has too little room for what is missing, or cannot be written.
    """
    folder = path.with_suffix(".shards")
    shards = _shards(folder, count, shard)
    with clock.phase("targets"), torch.no_grad():
        moments, cost, end = _first_pass(features, shards, dim, clock, after_shard)
        matrix, empty = moments.standardising(dim)
        rows = _second_pass(shards, moments.mean, matrix)

        def known() -> dict[str, str]:
            second = Cost.of(clock.spent("targets") - end, 0, 0, clock.side_by_side)
            return described(empty, cost + second, maker)

        _check_room(folder, 4 * count * matrix.shape[1])
        with writing(folder):
            with atomic_write(path) as file:
                write_rows(file, NAME, (count, matrix.shape[1]), rows, known)
            shutil.rmtree(folder)
    if written := load_targets(path, count, in_file=True):
        return written
    raise UserError(f"{path}: changed as soon as it was written; run again")


def _shards(folder: Path, count: int, size: int) -> list[Shard]:
    """Return the shards of `count` images, some of which may be in the folder, which is there after."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):  # of a run that was killed
            left.unlink()
    files = (folder / f"{number:05}.safetensors" for number in itertools.count())
    return [Shard(next(files), first, min(size, count - first)) for first in range(0, count, size)]


def _first_pass(
    features: Batches, shards: Sequence[Shard], dim: int, clock: Clock, after_shard: Callable[[int], None]
) -> tuple[Moments, Cost, Spent]:
    """Make the shards that are not there; return the features' moments, what all cost, and the clock's end of that.

    Each image is charged once: what was made before costs what its shard says, and reading it again is "other" time.
    What a shard takes is counted from the end of the one before, so that the time of writing that one is in it.
    """
    moments: Moments | None = None
    costs: list[Cost] = []
    batches: Iterator[tuple[Tensor, int]] | None = None
    end = clock.spent("targets")
    for shard in shards:
        with clock.phase("other"):
            known = shard.read()
            if known and (moments is None or known[0].shape[1] == len(moments.mean)):
                batches = None  # its workers end
                moments = _with(moments, known[0], clock.device)
                costs.append(known[1])
                continue
        batches = batches or features(shard.first)
        values, flops = _made(batches, shard, shards, dim)
        began, end = end, clock.spent("targets")
        costs.append(Cost.of(end - began, flops, shard.images, clock.side_by_side))
        shard.write(values, costs[-1])
        moments = _with(moments, values, clock.device)
        give_back_memory()
        with clock.phase("other"):
            after_shard(shard.first + shard.images)
    assert moments
    return moments, functools.reduce(operator.add, costs), end


def _made(batches: Iterator[tuple[Tensor, int]], shard: Shard, shards: Sequence[Shard], dim: int) -> tuple[Tensor, int]:
    """Return the next features, as many as the shard has, on the CPU, and their FLOPs. Raises UserError."""
    parts: list[Tensor] = []
    flops = 0
    while sum(map(len, parts)) < shard.images:
        part, more = next(batches)
        if not parts:  # before much is made
            images, width = sum(each.images for each in shards), part.shape[1]
            there = sum(each.path.stat().st_size for each in shards if each.path.is_file())
            _check_room(shard.path.parent, 4 * images * (width + min(dim, width)) - there)
        parts.append(part.cpu())
        flops += more
    return torch.cat(parts), flops


def _with(moments: Moments | None, values: Tensor, device: torch.device) -> Moments:
    """Return the moments with more features (b, p) in them."""
    moments = moments or Moments(values.shape[1], device)
    moments.add(values)
    return moments


def _second_pass(shards: Sequence[Shard], mean: Tensor, matrix: Tensor) -> Iterator[Tensor]:
    """Yield the targets float32 (b, k), a block at a time. Raises UserError on a shard that is damaged by now."""
    for shard in shards:
        known = shard.read()
        if known is None:
            raise UserError(f"{shard.path}: changed while targets were made of it; run again")
        for part in torch.split(known[0], PART):
            yield part.to(mean.device).double().sub_(mean).mm(matrix).float()


def _check_room(folder: Path, needed: int) -> None:
    """Raise UserError when the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: features and targets need {needed:,} bytes and {free:,} are free; BENCH_CACHE names another"
            " folder"
        )
