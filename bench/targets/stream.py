"""Targets of a set that is too large for memory: features in shards on disk, two passes over them, rows in a file.

What is in memory at a time is a shard of features, a few matrices (p, p), and no more, however many images there are.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.core.environment import give_back_memory
from bench.core.errors import UserError
from bench.core.files import atomic_write, set_aside
from bench.measure.clock import Clock, Spent
from bench.models.weights import save_tensors
from bench.targets.reduce import DAMAGED, Cost, Targets, components, digest_of, has_variance, read_metadata
from bench.targets.rows import Mapped, write_rows

SHARD = 8192  # images of a shard: 64 MiB of 2,048 features
PART = 512  # images that are float64 at a time

Batches = Callable[[int], Iterator[tuple[Tensor, int]]]


class Moments:
    """Count, mean (p,) and scatter (p, p) of features in float64, merged part by part (Chan, Golub, LeVeque 1983).

    The scatter is that around the mean, so that nothing is lost where the mean is large beside the deviation.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add features float32 (b, p), which may be on another device."""
        for part in torch.split(features, PART):
            values = part.to(self.mean.device).double()
            mean = values.mean(dim=0)
            values.sub_(mean)
            shift, total = mean - self.mean, self.count + len(part)
            self.scatter.addmm_(values.T, values)
            self.scatter.addr_(shift, shift, alpha=self.count * len(part) / total)
            self.mean += shift * (len(part) / total)
            self.count = total


def load_rows(path: Path, count: int) -> Targets | None:
    """Return cached targets of `count` images as rows of their file; None when there are none.

    A damaged file is set aside.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:  # checks that the file is as long as it says
            metadata = file.metadata()
        values = Mapped(path)
        targets = read_metadata(values, metadata)
        if len(values) == count and values.digest() == metadata["digest"]:
            return targets
    except (SafetensorError, OSError, LookupError, TypeError, ValueError):
        pass
    set_aside(path, DAMAGED)
    return None


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

    The mean and the covariance come from one pass over the features, the targets from a second one. The standard
    deviation of a component is that of its eigenvalue. Each shard is a file beside `path` with its digest and its
    cost, so a run that was killed goes on after its last whole shard, to the same targets bit for bit, and each
    image is charged once: what was made before costs what its shard says, and reading it again is "other" time. A
    damaged shard is made anew. The shards are removed at the end.

    Args:
        features: for the index of an image, yields the features float32 (b, p) from that image on, and the FLOPs
            that they took; a shard is a whole number of batches.
        count: N.
        dim: upper bound of the targets' dimension.
        path: the file to write.
        clock: charged with "targets"; the maths happens on its device.
        after_shard: called with the number of images whose features are on disk; may raise to stop there.
        shard: images of a shard.
        maker: the cell that makes them.

    Raises UserError when the disk has too little room for what is missing, or cannot be written.
    """
    folder = path.with_suffix(".shards")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):  # of a run that was killed
            left.unlink()
    shards = [
        (folder / f"{number:05}.safetensors", first, min(shard, count - first))
        for number, first in enumerate(range(0, count, shard))
    ]
    began = clock.spent("targets")
    with clock.phase("targets"), torch.no_grad():
        moments, made, found = _first_pass(features, shards, dim, clock, after_shard)
        values, vectors = components(moments.scatter / max(count - 1, 1), dim)
        full = has_variance(values)
        scale = torch.where(full, 1 / torch.where(full, values * ((count - 1) / count), 1.0).sqrt(), 0.0)
        matrix, empty = vectors * scale, int((~full).sum())

        def rows() -> Iterator[Tensor]:
            for file, _, images in shards:
                known = _read_shard(file, images)
                if known is None:
                    raise UserError(f"{file}: changed while targets were made of it; run again")
                for part in torch.split(known[0], PART):
                    yield part.to(clock.device).double().sub_(moments.mean).mm(matrix).float()

        def metadata() -> dict[str, str]:
            spent = clock.spent("targets") - began
            for cost in found:
                spent += Spent(cost.seconds, cost.joules, cost.other_load and cost.other_load * cost.seconds)
            flops = sum(cost.flops for cost in made + found)
            beside = max(clock.side_by_side, *(cost.side_by_side for cost in made + found))
            whole = Cost(spent.seconds, flops, count, spent.joules, beside, spent.other_load)
            return {
                "empty": str(empty),
                "cost": json.dumps(asdict(whole)),
                "maker": maker,
            }

        _check_room(folder, 4 * count * matrix.shape[1])
        with writing(folder):
            with atomic_write(folder / "targets.safetensors") as out:
                write_rows(out, (count, matrix.shape[1]), rows(), metadata)
            (folder / "targets.safetensors").replace(path)
            shutil.rmtree(folder)
    written = load_rows(path, count)
    if written is None:
        raise UserError(f"{path}: changed as soon as it was written; run again")
    return written


def _first_pass(
    features: Batches,
    shards: list[tuple[Path, int, int]],
    dim: int,
    clock: Clock,
    after_shard: Callable[[int], None],
) -> tuple[Moments, list[Cost], list[Cost]]:
    """Make the shards (file, first image, images) that are not there; return the costs of these and of the others.

    Called in the phase "targets". What a shard takes is counted from the end of the one before, so that the time of
    writing that one is in it.
    """
    count = sum(images for _, _, images in shards)
    moments: Moments | None = None
    batches: Iterator[tuple[Tensor, int]] | None = None
    made: list[Cost] = []
    found: list[Cost] = []
    space = values = torch.empty(0)
    mark = clock.spent("targets")
    for file, first, images in shards:
        with clock.phase("other"):
            known = _read_shard(file, images)
            if known and moments and known[0].shape[1] != len(moments.mean):
                known = None
            if known:
                batches = None  # its workers end
                moments = moments or Moments(known[0].shape[1], clock.device)
                moments.add(known[0])
                found.append(known[1])
                continue
        batches = batches or features(first)
        filled = flops = 0
        while filled < images:
            batch, flops_of_it = next(batches)
            if not filled:
                width = batch.shape[1]
                there = sum(other.stat().st_size for other, _, _ in shards if other.is_file())
                _check_room(file.parent, 4 * count * (width + min(dim, width)) - there)
                if space.shape != (shards[0][2], width):
                    space = torch.empty(shards[0][2], width)  # taken once: it is as large as a shard
                values = space[:images]
            values[filled : filled + len(batch)] = batch
            filled, flops = filled + len(batch), flops + flops_of_it
        now = clock.spent("targets")
        spent, mark = now - mark, now
        made.append(Cost(spent.seconds, flops, images, spent.joules, clock.side_by_side, spent.other_load))
        with writing(file.parent):
            metadata = {"cost": json.dumps(asdict(made[-1])), "digest": digest_of(values)}
            save_tensors({"features": values}, file, metadata)
        moments = moments or Moments(values.shape[1], clock.device)
        moments.add(values)
        give_back_memory()
        with clock.phase("other"):
            after_shard(first + images)
    assert moments
    return moments, made, found


def _read_shard(file: Path, images: int) -> tuple[Tensor, Cost] | None:
    """Return a shard's features float32 (images, p) and their cost; None when it is not there whole and unchanged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            values: Tensor = opened.get_tensor("features")
        cost = Cost.read(metadata["cost"])
        fits = values.dtype == torch.float32 and values.dim() == 2 and len(values) == images
        whole = fits and digest_of(values) == metadata["digest"]
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError):
        return None
    return (values, cost) if whole else None


def _check_room(folder: Path, needed: int) -> None:
    """Raise UserError when the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: features and targets need {needed:,} bytes and {free:,} are free; BENCH_CACHE names another"
            " folder"
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the disk's errors into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write targets here ({error.strerror}); BENCH_CACHE names another folder"
        ) from error
