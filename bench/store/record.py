"""Records: one JSON file for every finished cell, `results/<grid>/<cell id>.json`."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from bench.core.files import atomic_write
from bench.grid.base import Model
from bench.grid.cell import Cell, Inputs, cell_id
from bench.store.reading import SCHEMA, Damaged, read_model

# The kernel's own work, and clocks that count in hundredths of a second, made up to 0.009 (docs/performance.md).
OTHER_LOAD = 0.05  # share of the time that other work may take of what was "measured alone"
OTHER_WORK = f"other work took over {OTHER_LOAD:.0%} of the time"

Failure = Literal["failed", "oom", "timeout", "skipped"]
Status = Literal["done"] | Failure
# What the report can count with: a record is a file that anyone may have written.
Count = Annotated[int, Field(ge=0, le=10**30)]
Spent = Annotated[int, Field(ge=1, le=10**30)]  # of which a share is taken
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Joules = Annotated[float, Field(ge=0, le=1e15)]
Cells = Annotated[int, Field(ge=1, le=10**6)]  # that ran on a device at a time
Nats = Annotated[float, Field(ge=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]


class Moved(Model):
    """Where a probe by Adam stood after four fifths of its epochs and at its end, each a mean of three epochs.

    `loss`: mean cross-entropy of the training images, nats. `accuracy`: share of the test images.
    """

    loss: Annotated[tuple[Nats, Nats], Field(strict=False)]
    accuracy: Annotated[tuple[Share, Share], Field(strict=False)]

    @property
    def converged(self) -> bool:
        """Whether the last fifth changed little: the loss fell by at most 1 %, the accuracy moved by 0.2 points.

        Other epochs and other seeds of a probe that is at its minimum move an accuracy by as much.
        """
        before, after = self.loss
        return before - after <= 0.01 * before and abs(self.accuracy[1] - self.accuracy[0]) <= 0.002


class Solved(Model):
    """Where a probe by L-BFGS ended: its penalty, whether none weaker or stronger was tried, passes, and gradient."""

    l2: float
    at_edge: bool
    passes: Count
    gradient: Annotated[float, Field(ge=0)]  # largest entry, where each direction is about as steep

    @property
    def converged(self) -> bool:
        """Whether it ended at the minimum: below this gradient, a thousand weights are within 0.001 nats of it."""
        return self.gradient <= 1e-3


class ByAdam(Model):
    """What the paper's recipe gives beside another one: accuracies after its last epochs, and how it ended."""

    linear: tuple[Share, ...]
    end: Moved | None = None


class Score(Model):
    """Accuracies, shares of images: one after each of the probe's last epochs.

    `further_probes`: those of the probes of further seeds. `end`: of the first probe; None: not measured. `by_adam`:
    where another recipe decides. Both it and the effective rank of the test images' features are of the cell's last
    evaluation alone.
    """

    linear: Annotated[tuple[Share, ...], Field(min_length=1)]
    knn: Share
    further_probes: tuple[tuple[Share, ...], ...] = ()
    end: Moved | Solved | None = None
    by_adam: ByAdam | None = None
    effective_rank: Annotated[float, Field(ge=0, le=1e6)] | None = None


def score_linear(score: Score | ByAdam) -> float:
    """Return the linear accuracy of a score: the mean over the probe's last epochs."""
    return statistics.fmean(score.linear)


class Point(Model):
    """An evaluation: what was spent on training until then, and what was reached."""

    step: Spent
    images: Count
    flops: Count
    seconds: Seconds
    loss: float
    mean_losses: dict[str, float] = Field(default_factory=dict)  # by kind of step, over those since the point before
    weight_norm: float | None = None  # L2, of all trained parameters together
    score: Score
    joules: Joules | None = None  # of the GPU; None: not measured
    other_load: Share | None = None  # of the seconds, that other work took; None: not known


class Company(Model):
    """Other work on the machine at the same time; seconds and joules that it affected are kept but not charged.

    `side_by_side` is how many cells ran on the device at a time, this one among them; `other_load` the share of the
    time that any other work took (bench/measure/load.py), None where it is not known.
    """

    side_by_side: Cells = 1
    other_load: Share | None = None

    @property
    def company(self) -> str:
        """Why the seconds and joules may include other work, or "" if they do not."""
        if self.side_by_side > 1:
            return "other cells ran on the same device"
        if self.other_load is None:
            return "whether other work ran was not measured"
        return OTHER_WORK if self.other_load > OTHER_LOAD else ""

    @property
    def alone(self) -> bool:
        """Whether seconds and joules are known to be of this and nothing else."""
        return not self.company


class TargetCost(Company):
    """What making the targets took; a cell whose targets were cached is charged the same."""

    seconds: Seconds
    flops: Count
    images: Count
    empty: Count
    cached: bool
    joules: Joules | None = None


class Ledger(Company):
    """What a cell spent, seconds and joules by phase.

    The seconds add up to the wall time; the joules are the GPU's, None where they are not measured. Of `other_load`,
    the largest until any evaluation: each of these has seconds of its own.
    """

    steps: Spent
    images: Spent
    flops: Spent
    seconds: dict[str, Seconds]
    wall_seconds: Seconds
    peak_memory_bytes: Count | None
    targets: TargetCost | None
    flops_not_counted: str
    joules: dict[str, Joules] | None = None
    skipped_steps: Count | None = None  # of fp16, for gradients that were not finite: they changed no parameter

    @property
    def flops_with_targets(self) -> int:
        """FLOPs of training and of making the targets."""
        return self.flops + (self.targets.flops if self.targets else 0)

    @property
    def seconds_with_targets(self) -> float:
        """Seconds of training and of making the targets, whoever made them."""
        return self.seconds["train"] + (self.targets.seconds if self.targets else 0)


def _with_packages(provenance: dict[str, Any]) -> dict[str, Any]:
    """Refuse packages that are no mapping from names to versions."""
    if not isinstance(provenance.get("packages", {}), dict):
        raise ValueError("packages must be a mapping")  # noqa: TRY004
    return provenance


class References(Model):
    """What a cell's scores are to be seen beside, by the same probe: its backbone untrained, and its prior itself.

    The prior is that of its targets, else that whose weights its training begins with.

    None: without a prior, or where the features were not finite numbers.
    """

    untrained: Score | None
    prior: Score | None = None


class _Filed(Model):
    """What every record says: which cell it is of, and how it was made."""

    id: str
    grid: str
    cell: Cell
    inputs: Inputs
    dataset_title: str
    provenance: Annotated[dict[str, Any], AfterValidator(_with_packages)]
    rehearsal: bool = False
    schema_version: int = SCHEMA

    @property
    def priors(self) -> dict[str, str]:
        """The digests of the priors, by name: of the targets, and of the weights that training begins with."""
        choice, start = self.cell.targets_of, self.cell.warm_start
        made = choice.members(self.inputs.prior or "") if choice else {}
        return made | ({start: self.inputs.warm_start or ""} if start else {})


class Finished(_Filed):
    """The result of a cell."""

    # What settings and seed decide: times and memory are the machine's, and so are a loss's last digits.
    decided: ClassVar[dict[str, Any]] = {
        "rehearsal": True,
        "curve": {
            "__all__": {"step": True, "images": True, "flops": True, "score": {"linear", "knn", "further_probes"}}
        },
        "switch_step": True,
        "ledger": {"steps": True, "images": True, "flops": True, "targets": {"flops", "images"}},
    }
    status: Literal["done"] = "done"
    test_images: Spent | None = None  # that the accuracies are shares of; None: not recorded
    curve: Annotated[tuple[Point, ...], Field(min_length=1)]
    switch_step: Count | None = None
    ledger: Ledger
    references: References | None = None  # None: not measured
    code: dict[str, str] | None = None  # digests of what decided the numbers, by part; None: not recorded

    @property
    def final(self) -> Score:
        """The scores at the end."""
        return self.curve[-1].score


class Failed(_Filed):
    """Why a cell has no result."""

    status: Failure
    error: Annotated[str, Field(min_length=1)]


Record = Finished | Failed


def best_trial(done: Sequence[Finished]) -> Finished:
    """Return the trial with the highest linear accuracy on its validation images, of equals the first."""
    return max(done, key=lambda record: score_linear(record.final))


def record_path(folder: Path, identifier: str) -> Path:
    """Return where the record of a cell lies."""
    return folder / f"{identifier}.json"


def write_record(record: Record, folder: Path) -> None:
    """Write a record, atomically."""
    with atomic_write(record_path(folder, record.id)) as file:
        file.write((record.model_dump_json(indent=1) + "\n").encode())


def read_record(path: Path) -> Record | Damaged:
    """Return the record in a file, or why it is none: it must be whole, of this schema, and hash to its name."""
    return read_model(path, _kind, lambda record: cell_id(record.cell, record.inputs) == record.id == path.stem)


def _kind(raw: dict[str, Any]) -> type[Finished] | type[Failed]:
    """Return the kind of a record. Earlier versions also wrote the other kind's fields, empty: these are removed."""
    kind: type[Finished] | type[Failed] = Finished if raw.get("status") == "done" else Failed
    for name in raw.keys() - kind.model_fields.keys():
        if raw[name] is None or raw[name] == []:
            del raw[name]
    return kind


def record_files(folder: Path) -> list[Path]:
    """Return the JSON files of a folder in the order of their names, none where no folder is. Raises OSError.

    `Path.glob` would have none in a folder that cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_records(folder: Path) -> tuple[list[Record], list[Damaged]]:
    """Return the records of a folder in the order of their names, and the files that are none."""
    read = [read_record(path) for path in record_files(folder)]
    return [r for r in read if not isinstance(r, Damaged)], [r for r in read if isinstance(r, Damaged)]


def finished(folder: Path, identifier: str) -> Finished | None:
    """Return the result of a cell, or None. This alone decides whether a cell is done."""
    found = read_record(record_path(folder, identifier))
    return found if isinstance(found, Finished) else None
