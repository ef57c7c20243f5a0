"""The two-Gaussian study: what its YAML may say, its settings and records, and running it.

How do the variance of the training samples (Sigma) and relabelling (the share rho of a prior model's soft targets in
the labels) change the speed of optimisation? A file with the key `toy` is such a study. Its settings vary one of the
two at a time around the unmodified data (Sigma as in the test data, rho = 0); a record holds one setting with all its
seeds. The training is in `bench.toy.train`, tables and plots in `bench.toy.report`. Records are read without torch.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationError, ValidationInfo, field_validator

from bench.core.errors import UserError
from bench.core.files import atomic_write
from bench.grid.base import Model, Seed
from bench.grid.cell import digest
from bench.grid.load import TOY, read_grid, with_overrides
from bench.grid.schema import GRID_NAME
from bench.grid.validate import sentence
from bench.store.reading import SCHEMA, Damaged, read_model
from bench.store.record import record_path

TOY_VERSION = 1  # raised whenever the code changes a result that the settings do not show
MAX_NUMBERS = 2**28  # of samples and features, or of a batch's indices, of all seeds: 2 GiB
DIGITS = 6  # of the numbers in a record, after the point


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value} is there twice; remove one")
    return values


def _rising(steps: tuple[int, ...]) -> tuple[int, ...]:
    if list(steps) != sorted(set(steps)) or steps[-1] == 0:
        raise ValueError("must rise from step to step, to 1 or more")
    return steps


Share = Annotated[float, Field(ge=0, le=1)]
Step = Annotated[int, Field(ge=0, le=100_000)]
Count = Annotated[int, Field(ge=1, le=100_000)]
Seeds = Annotated[tuple[Seed, ...], Field(strict=False, min_length=1, max_length=1000), AfterValidator(_unique)]


class Toy(Model):
    """What is equal in all settings. Lengths and standard deviations share one unit."""

    dimension: Annotated[int, Field(ge=1, le=1000)]
    distance: PositiveFloat  # between the means of the two Gaussians
    sigma: PositiveFloat  # standard deviation in each direction of the unmodified samples, and of the test's
    samples: Count
    test_samples: Count
    hidden: Annotated[int, Field(ge=1, le=1000)]
    lr: PositiveFloat
    batch_size: Annotated[int, Field(ge=1, le=1000)]
    evaluate_at: Annotated[tuple[Step, ...], Field(strict=False, min_length=1), AfterValidator(_rising)]
    prior_samples: Count
    prior_steps: Step

    @property
    def bayes_accuracy(self) -> float:
        """The accuracy on the test distribution that no classifier exceeds: Phi(distance / (2 sigma))."""
        return statistics.NormalDist().cdf(self.distance / (2 * self.sigma))


class ToyGrid(Model):
    """A study. Training ends at the last of `toy.evaluate_at`."""

    name: Annotated[str, Field(pattern=GRID_NAME, max_length=80)]
    title: str = ""
    toy: Toy
    seeds: Seeds
    sigmas: Annotated[tuple[PositiveFloat, ...], Field(strict=False, max_length=1000), AfterValidator(_unique)]
    rhos: Annotated[tuple[Share, ...], Field(strict=False, max_length=1000), AfterValidator(_unique)]
    early: PositiveInt  # the step whose test loss the report compares
    target_loss: PositiveFloat  # nats; the report counts the steps to it
    profiles: Annotated[dict[str, dict[str, Any]], Field(default_factory=dict)]

    @field_validator("early")
    @classmethod
    def _is_evaluated(cls, value: int, info: ValidationInfo) -> int:
        if "toy" in info.data and value not in info.data["toy"].evaluate_at:
            raise ValueError("must be one of toy.evaluate_at")
        return value

    @field_validator("seeds")
    @classmethod
    def _fits_in_memory(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        toy = info.data.get("toy")
        if toy:
            samples = max(toy.samples, toy.test_samples, toy.prior_samples) * (toy.dimension + toy.hidden)
            order = max(toy.evaluate_at[-1], toy.prior_steps) * toy.batch_size
            if len(value) * max(samples, order) > MAX_NUMBERS:
                raise ValueError(f"more than {MAX_NUMBERS:,} numbers at a time; take fewer seeds, samples or steps")
        return value

    @property
    def unmodified(self) -> "Setting":
        """The setting that modifies nothing."""
        return Setting(sigma=self.toy.sigma, rho=0.0, seeds=self.seeds, toy=self.toy)

    @property
    def by_sigma(self) -> "list[Setting]":
        """The settings that differ in the variance of the training samples, the unmodified one among them."""
        sigmas = sorted({self.toy.sigma, *self.sigmas})
        return [Setting(sigma=sigma, rho=0.0, seeds=self.seeds, toy=self.toy) for sigma in sigmas]

    @property
    def by_rho(self) -> "list[Setting]":
        """The settings that differ in relabelling, the unmodified one among them."""
        rhos = sorted({0.0, *self.rhos})
        return [Setting(sigma=self.toy.sigma, rho=rho, seeds=self.seeds, toy=self.toy) for rho in rhos]

    @property
    def settings(self) -> "list[Setting]":
        """Every setting once, the unmodified one first."""
        return list(dict.fromkeys([self.unmodified, *self.by_sigma, *self.by_rho]))


class Setting(Model):
    """All that decides a result."""

    sigma: PositiveFloat  # of the training samples
    rho: Share  # of the prior's prediction in the targets
    seeds: Seeds
    toy: Toy

    def __str__(self) -> str:
        """Name what varies."""
        return f"Sigma {self.sigma:g}, rho {self.rho:g}"

    @property
    def id(self) -> str:
        """The content hash that names the setting's record."""
        return digest({"toy_version": TOY_VERSION, **self.model_dump(mode="json")})


class ToyRecord(Model):
    """The result of a setting. Outer tuples: seeds; inner ones: `toy.evaluate_at`."""

    decided: ClassVar[set[str]] = {"accuracy", "loss", "prior_accuracy"}  # by the setting
    id: str
    grid: str
    setting: Setting
    accuracy: tuple[tuple[Share, ...], ...]  # share of the test samples
    loss: tuple[tuple[Annotated[float, Field(ge=0)], ...], ...]  # mean test cross-entropy, nats
    prior_accuracy: tuple[Share, ...] | None  # of each seed's prior; None without relabelling
    seconds: Annotated[float, Field(ge=0)]
    provenance: dict[str, Any]
    schema_version: int = SCHEMA

    @field_validator("accuracy", "loss")
    @classmethod
    def _is_whole(cls, value: tuple[tuple[float, ...], ...], info: ValidationInfo) -> tuple[tuple[float, ...], ...]:
        setting = info.data.get("setting")
        if setting and [len(row) for row in value] != [len(setting.toy.evaluate_at)] * len(setting.seeds):
            raise ValueError("not one value for each seed and evaluation")
        return value

    @field_validator("prior_accuracy")
    @classmethod
    def _is_there(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        setting = info.data.get("setting")
        if setting and (None if value is None else len(value)) != (len(setting.seeds) if setting.rho else None):
            raise ValueError("not one value for each seed's prior")
        return value

    def at(self, values: Sequence[Sequence[float]], step: int) -> list[float]:
        """Return the values of the seeds after a step that was evaluated."""
        index = self.setting.toy.evaluate_at.index(step)
        return [row[index] for row in values]

    def steps_to(self, loss: float) -> list[float]:
        """Return the first evaluation of each seed whose test loss is no greater; infinite where there is none."""
        steps = self.setting.toy.evaluate_at
        return [next((s for s, v in zip(steps, row, strict=True) if v <= loss), float("inf")) for row in self.loss]


def find_toy(name: str, profile: str | None = None, settings: Sequence[str] = ()) -> ToyGrid | None:
    """Return the study that a shipped name or a path stands for, None when it is a grid of cells.

    Raises UserError as `bench.grid.load.load_grid` does, which takes the same arguments.
    """
    raw, path = read_grid(name)
    if TOY not in raw:
        return None
    raw, source = with_overrides(raw, path, profile, settings)
    try:
        return ToyGrid.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {sentence(error, ToyGrid)}") from error


def read_toy(path: Path) -> ToyRecord | Damaged:
    """Return the record in a file, or why it is none: it must be whole, of this schema, and hash to its name."""
    return read_model(path, lambda raw: ToyRecord, lambda record: record.setting.id == record.id == path.stem)


def states(grid: ToyGrid, folder: Path) -> list[tuple[Setting, str]]:
    """Return how far each setting is: done, waiting, or damaged and why."""
    known = []
    for setting in grid.settings:
        path = record_path(folder, setting.id)
        record = read_toy(path) if path.exists() else None
        state = "done" if record else "waiting"
        known.append((setting, f"damaged: {path}: {record.reason}" if isinstance(record, Damaged) else state))
    return known


def print_states(grid: ToyGrid, results: Path, as_json: bool = False) -> None:
    """Print how far each setting is, and what a run would do."""
    known = states(grid, results / grid.name)
    if as_json:
        print(json.dumps([{"id": each.id, "setting": str(each), "state": state} for each, state in known], indent=1))
        return
    for setting, state in known:
        print(f"{setting.id}  {setting}: {state}")
    todo = sum(state != "done" for _, state in known)
    print(f"{todo} of {len(known)} settings to run, {len(grid.seeds)} seeds each; seconds on a CPU, needs no data")


def run_toy(grid: ToyGrid, results: Path) -> None:
    """Run the settings without a sound record and write theirs. Raises UserError when a training diverges."""
    from bench.toy.train import study  # imports torch, which records can be read without

    folder = results / grid.name
    known = states(grid, folder)
    for setting, state in known:
        if state == "done":
            continue
        if state != "waiting":
            print(f"{state}; it is run again", file=sys.stderr)
        begin = time.perf_counter()
        curves = study(setting)
        seconds = time.perf_counter() - begin
        _write(grid, setting, folder, curves._asdict(), seconds)
        print(f"{setting}: done in {seconds:.1f} s")
    before = sum(state == "done" for _, state in known)
    print(f"{len(known)} of {len(known)} settings done ({before} before), on the CPU; records in {folder}")


def _write(grid: ToyGrid, setting: Setting, folder: Path, curves: dict[str, Any], seconds: float) -> None:
    import torch

    from bench.measure.provenance import provenance

    record = ToyRecord(
        id=setting.id,
        grid=grid.name,
        setting=setting,
        **{name: _rounded(values) for name, values in curves.items()},
        seconds=round(seconds, 3),
        provenance=provenance(torch.device("cpu")),
    )
    with atomic_write(record_path(folder, setting.id)) as file:
        file.write((record.model_dump_json() + "\n").encode())


def _rounded(values: Any) -> Any:
    """Return nested lists as tuples of rounded numbers."""
    if isinstance(values, list):
        return tuple(map(_rounded, values))
    return None if values is None else round(values, DIGITS)
