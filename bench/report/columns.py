"""The columns of a report's tables for other tools: what each is called, means and counts in, and what computes it.

Accuracies are shares of images; costs are plain FLOP, seconds, joules and bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from bench.report.collect import Result
from bench.report.facts import (
    knn,
    linear,
    phase_seconds,
    probe_sd,
    target_flops,
    wall_seconds,
)
from bench.store.record import Finished

Type = Literal["string", "Int64", "Float64", "boolean"]  # of pandas, all of which may be empty
T = TypeVar("T")


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table; `unit` is "" for words, and `value` gives what it holds in a row, None where nothing is."""

    name: str
    type: Type
    unit: str
    meaning: str
    value: Callable[[T], Any]


def text(name: str, meaning: str, value: Callable[[T], Any]) -> Column[T]:
    return Column(name, "string", "", meaning, value)


def flag(name: str, meaning: str, value: Callable[[T], Any]) -> Column[T]:
    return Column(name, "boolean", "", meaning, value)


def count(name: str, unit: str, meaning: str, value: Callable[[T], Any]) -> Column[T]:
    return Column(name, "Int64", unit, meaning, value)


def real(name: str, unit: str, meaning: str, value: Callable[[T], Any]) -> Column[T]:
    """Return a column of float64, which FLOPs are too: 64 bits do not hold all of their counts."""
    return Column(name, "Float64", unit, meaning, value)


def of_result(result: Callable[[T], Result]) -> tuple[Column[T], ...]:
    """Return the columns that say of which arm and data a row is."""
    return (
        text("dataset", "name of the dataset", lambda row: result(row).group.dataset),
        text("dataset_title", "title of the dataset", lambda row: result(row).group.title),
        text("data", "digest of the dataset's content", lambda row: result(row).group.data),
        text("arm", "label of the arm: method, wrapper, prior and settings", lambda row: result(row).label),
        text("method", "self-supervised method", lambda row: result(row).arm.method),
        text("prior", "prior of ReLA; empty without ReLA", lambda row: _targets_of(result(row))),
        text("phase", "ReLA's phase: adaptive, or its share of the epochs", lambda row: _rela(result(row), "phase")),
        real("budget", "1", "share of the full number of steps", lambda row: result(row).budget),
    )


def _targets_of(result: Result) -> str | None:
    return result.arm.targets_of.named if result.arm.targets_of else None


def _rela(result: Result, name: str) -> str | None:
    return str(getattr(result.arm.rela, name)) if result.arm.rela else None


def _mean(name: str, unit: str, meaning: str, value: Callable[[Finished], float | None]) -> Column[Result]:
    return real(name, unit, f"{meaning}: mean over the seeds", lambda r: r.mean(value))


def _clock(name: str, meaning: str, value: Callable[[Finished], float | None]) -> Column[Result]:
    """Return a column of seconds, which is empty where only some of the seeds were measured alone."""

    def mean(result: Result) -> float | None:
        summary = result.over_seeds(value)
        return summary.mean if summary and summary.n == len(result.done) else None

    return real(name, "s", f"{meaning}: mean over the seeds; empty where any was not measured alone", mean)


def _sd(result: Result, value: Callable[[Finished], float | None]) -> float | None:
    return summary.sd if (summary := result.over_seeds(value)) else None


RESULTS: tuple[Column[Result], ...] = (
    *of_result(lambda r: r),
    count("n_planned", "1", "seeds that the grid has", lambda r: len(r.seeds)),
    count("n", "1", "seeds that are finished", lambda r: len(r.done)),
    _mean("linear_mean", "1", "linear accuracy", linear),
    real("linear_sd", "1", "its sample standard deviation (ddof 1)", lambda r: _sd(r, linear)),
    _mean("knn_mean", "1", "kNN accuracy", knn),
    real("knn_sd", "1", "its sample standard deviation (ddof 1)", lambda r: _sd(r, knn)),
    _mean("linear_probe_sd", "1", "sample standard deviation over a probe's last epochs", lambda x: probe_sd(x.final)),
    _mean("steps", "steps", "taken", lambda x: x.ledger.steps),
    _mean("images", "images", "trained on", lambda x: x.ledger.images),
    _mean("train_flops", "FLOP", "of training", lambda x: x.ledger.flops),
    _mean("target_flops", "FLOP", "of making the targets", target_flops),
    _clock("train_seconds", "of training", lambda x: phase_seconds(x, "train")),
    _clock("target_seconds", "of making the targets", lambda x: phase_seconds(x, "targets")),
    _clock("eval_seconds", "of all evaluations", lambda x: phase_seconds(x, "eval")),
    _clock("other_seconds", "of all else", lambda x: phase_seconds(x, "other")),
    _clock("wall_seconds", "of whole cells", wall_seconds),
    _mean("peak_memory_bytes", "bytes", "peak of a whole cell", lambda x: x.ledger.peak_memory_bytes),
    _mean("switch_step", "steps", "at which ReLA handed over to the method, where it did", lambda x: x.switch_step),
    count(
        "n_switched",
        "1",
        "seeds in which ReLA handed over; empty without ReLA",
        lambda r: float(sum(x.switch_step is not None for x in r.done)) if r.arm.rela else None,
    ),
)
