"""Targets in the cache: found there by what they are made of, with their cost, or set aside where they are damaged."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bench.core.errors import DamagedFile, UserError
from bench.core.files import atomic_write, set_aside
from bench.grid.cell import digest
from bench.measure.clock import Spent
from bench.store.record import Company, Count, Joules, Seconds
from bench.targets.rows import MemmapRows, read_rows, write_rows

NAME = "targets"  # of the tensor in a file
VERSION = 1  # raised whenever the code makes other targets of the same features


class Cost(Company):
    """What making the targets took, paid once and charged to every cell that uses them."""

    seconds: Seconds
    flops: Count
    images: Count
    joules: Joules | None = None  # of the GPU; None: not measured

    @classmethod
    def of(cls, spent: Spent, flops: int, images: int, side_by_side: int) -> "Cost":
        """Return the cost of images that took a part of a clock's time, beside so many cells."""
        return cls(
            seconds=spent.seconds,
            flops=flops,
            images=images,
            joules=spent.joules,
            side_by_side=side_by_side,
            other_load=spent.other_load,
        )

    def __add__(self, other: "Cost") -> "Cost":
        spent = Spent(0.0, 0.0, 0.0)
        for each in (self, other):
            taken = None if each.other_load is None else each.other_load * each.seconds
            spent += Spent(each.seconds, each.joules, taken)
        beside = max(self.side_by_side, other.side_by_side)
        return Cost.of(spent, self.flops + other.flops, self.images + other.images, beside)


@dataclass(frozen=True)
class Targets:
    """Targets float32 (N, k) of N training images, how many of the k components are empty, and their cost.

    `maker` is the id of the cell that made them. The values are in memory, or rows of a file when the images stream.
    """

    values: Tensor | MemmapRows
    empty: int
    cost: Cost
    maker: str = ""


def cache_path(cache: Path, **identity: str | int) -> Path:
    """Return where targets of this identity are cached; data, prior and settings all count."""
    return cache / "targets" / f"{digest({'version': VERSION, **identity})}.safetensors"


def save_targets(targets: Targets, path: Path) -> None:
    """Write targets that are in memory, and what is known of them, atomically."""
    assert isinstance(targets.values, Tensor)
    count, dim = targets.values.shape
    known = described(targets.empty, targets.cost, targets.maker)
    with atomic_write(path) as file:
        write_rows(file, NAME, (count, dim), [targets.values], lambda: known)


def described(empty: int, cost: Cost, maker: str) -> dict[str, str]:
    """Return what a file says of its targets."""
    return {"empty": str(empty), "cost": cost.model_dump_json(), "maker": maker}


def load_targets(path: Path, count: int, in_file: bool = False) -> Targets | None:
    """Return cached targets of `count` images, in memory or as rows of their file; None when there are none.

    A damaged file is set aside.
    """
    if not path.is_file():
        return None
    try:
        rows, known = read_rows(path, NAME, count)
        cost = Cost.model_validate_json(known["cost"])
        return Targets(rows if in_file else rows.in_memory(), int(known["empty"]), cost, known.get("maker", ""))
    except (DamagedFile, LookupError, ValueError):
        set_aside(path, "targets that are damaged, or not those of its name")
        return None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the disk's errors into one sentence. Raises UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write targets here ({error.strerror}); BENCH_CACHE names another folder"
        ) from error
