"""Baselines: what the cells of a grid gave over many seeds, in one file, to compare a later run with."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from bench.core.errors import NotMadeError, UserError
from bench.core.files import atomic_write
from bench.grid.base import Budget, Model, Seed
from bench.grid.cell import digest
from bench.grid.expand import expand
from bench.grid.schema import Grid
from bench.report.facts import linear
from bench.store.reading import Damaged, read_model
from bench.store.record import Finished, Record

SHIPPED = Path(__file__).parent / "baselines"
SCHEMA = 1
Key = tuple[str, str, float]  # dataset, arm, budget
Value = TypeVar("Value", int, float)
MIN_SEEDS = 3  # a deviation of two values is worth nothing


class Sample(Model):
    """What an arm gave at a budget on a dataset: for each count and each metric its values, one a seed.

    `repeats` are the metrics of the first seeds once more, as another order of floating-point operations gives them.
    """

    dataset: str
    arm: str
    budget: Budget
    counts: dict[str, tuple[int, ...]]
    metrics: dict[str, tuple[float, ...]]
    repeats: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What names it."""
        return self.dataset, self.arm, self.budget

    @property
    def where(self) -> str:
        """What names it for people."""
        return f"{self.dataset} {self.arm} {self.budget:.0%}"

    @property
    def values(self) -> Mapping[str, Sequence[float]]:
        """Counts and metrics together."""
        return {**self.counts, **self.metrics}


class Baseline(Model):
    """The samples of a grid, all over the same seeds.

    `settings` is the digest of all settings of the grid's cells but the seed, `data` that of each dataset's content.
    """

    grid: str
    settings: str
    data: dict[str, str]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    samples: tuple[Sample, ...]
    provenance: dict[str, Any]
    schema_version: int = SCHEMA

    @model_validator(mode="after")
    def _whole(self) -> "Baseline":
        for sample in self.samples:
            for name, values in (sample.counts | sample.metrics).items():
                if len(values) != len(self.seeds):
                    raise ValueError(f"{sample.arm}: {name}: {len(values)} values for {len(self.seeds)} seeds")
            for name, values in sample.repeats.items():
                if name not in sample.metrics or len(values) > len(self.seeds):
                    raise ValueError(f"{sample.arm}: {name}: repeats without values")
        return self


def settings_digest(grid: Grid) -> str:
    """Return the digest of what the grid's cells are, whatever their seeds."""
    cells = {json.dumps([cell.arm, cell.settings() | {"seed": None}], sort_keys=True) for cell in expand(grid)}
    return digest(sorted(cells))


def counts_of(record: Finished) -> dict[str, int]:
    """Return what a finished cell did, in whole numbers. A switch that never came counts as one at the end."""
    ledger = record.ledger
    counts = {"steps": ledger.steps, "images": ledger.images, "FLOP of training": ledger.flops}
    if ledger.targets:
        counts |= {
            "FLOP of targets": ledger.targets.flops,
            "images of targets": ledger.targets.images,
            "empty targets": ledger.targets.empty,
        }
    if record.cell.rela:
        counts["switch step"] = ledger.steps if record.switch_step is None else record.switch_step
    return counts


def metrics_of(record: Finished) -> dict[str, float]:
    """Return what a finished cell measured: accuracies and weights at the end, mean losses by kind of step and part."""
    point = record.curve[-1]
    metrics = {"linear accuracy": linear(record), "kNN accuracy": point.score.knn}
    if point.weight_norm is not None:
        metrics["weight norm"] = point.weight_norm
    for part in record.curve:
        where = f" up to step {part.step}" if len(record.curve) > 1 else ""
        metrics |= {f"loss of {kind} steps{where}": loss for kind, loss in part.mean_losses.items()}
    return metrics


def measured(grid: Grid, records: Iterable[Record]) -> Baseline:
    """Return what the grid's records hold; arms with a seed that is not done are left out. Raises UserError."""
    planned = {cell.key(): cell for cell in expand(grid)}
    groups: dict[Key, dict[int, Finished]] = {(cell.dataset, cell.arm, cell.budget): {} for cell in planned.values()}
    for record in records:
        cell = planned.get(record.cell.key())
        if cell and isinstance(record, Finished) and not record.rehearsal:
            groups[cell.dataset, cell.arm, cell.budget][cell.seed] = record
    whole = {
        key: [group[seed] for seed in grid.seeds] for key, group in groups.items() if len(group) == len(grid.seeds)
    }
    used = [record for group in whole.values() for record in group]
    data = {record.cell.dataset: record.inputs.data for record in used}
    for record in used:
        if record.inputs.data != data[record.cell.dataset]:
            raise UserError(f"grid {grid.name}: records of two versions of {record.cell.dataset}; name an empty folder")
    samples = [
        Sample(
            dataset=dataset,
            arm=arm,
            budget=budget,
            counts=_by_name(map(counts_of, group)),
            metrics=_by_name(map(metrics_of, group)),
        )
        for (dataset, arm, budget), group in whole.items()
    ]
    return Baseline(
        grid=grid.name,
        settings=settings_digest(grid),
        data=data,
        seeds=grid.seeds,
        samples=tuple(samples),
        provenance=used[0].provenance if used else {},
    )


def with_repeats(baseline: Baseline, again: Baseline) -> Baseline:
    """Return a baseline with the metrics that its first seeds gave once more."""
    there = {sample.key: sample.metrics for sample in again.samples}
    samples = [sample.model_copy(update={"repeats": there[sample.key]}) for sample in baseline.samples]
    return baseline.model_copy(update={"samples": tuple(samples)})


def _by_name(seeds: Iterable[dict[str, Value]]) -> dict[str, tuple[Value, ...]]:
    """Return the values of the facts that all seeds have."""
    facts = list(seeds)
    return {name: tuple(each[name] for each in facts) for name in facts[0] if all(name in each for each in facts)}


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline, atomically."""
    with atomic_write(path) as file:
        file.write((baseline.model_dump_json(indent=1) + "\n").encode())


def read_baseline(path: Path, grid: Grid) -> Baseline:
    """Return a file's baseline. Raises UserError when it holds none, or one of another grid or other settings."""
    anew = ("check", "--baseline", str(path.absolute()), "--update")
    found = read_model(path, lambda raw: Baseline, lambda baseline: True, SCHEMA)
    if isinstance(found, Damaged):
        raise NotMadeError(f"--baseline {path}: {found.reason}", *anew)
    if found.settings != settings_digest(grid):
        raise NotMadeError(f"--baseline {path}: made with other settings of grid {found.grid} than these", *anew)
    if len(found.seeds) < MIN_SEEDS:
        raise NotMadeError(f"--baseline {path}: of fewer than {MIN_SEEDS} seeds", *anew)
    return found
