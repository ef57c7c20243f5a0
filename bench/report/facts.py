"""What the record of a finished cell says: accuracies, their spreads, and costs."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from bench.core.stats import deviation
from bench.store.record import Company, Finished, Score, score_linear

LEAST_RANK = 2.0  # of features that tell two classes apart: what is common to all images, and what is not
TOLERANCE = 0.02  # of the wall time, that the phases may miss


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof 1) of n values; one value has no deviation."""

    n: int
    mean: float
    sd: float | None

    @property
    def bounds(self) -> tuple[float, float] | tuple[None, None]:
        """One deviation below the mean and above it, None of one value."""
        return (None, None) if self.sd is None else (self.mean - self.sd, self.mean + self.sd)


def summarise(values: Iterable[float | None]) -> Summary | None:
    """Return mean, sample standard deviation and n of the values that are there, None without any."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Summary(len(there), statistics.fmean(there), deviation(there) if len(there) > 1 else None)


def linear(record: Finished) -> float:
    """Return a finished cell's linear accuracy: the mean over the probe's last epochs."""
    return score_linear(record.final)


def linear_by_adam(record: Finished) -> float | None:
    """Return a finished cell's linear accuracy by the paper's recipe, where another one decides; None elsewhere."""
    beside = record.final.by_adam
    return score_linear(beside) if beside else None


def learned(record: Finished) -> bool | None:
    """Return whether a finished cell learned anything; None where that was not measured.

    It did not where its accuracy is not above that of the untrained backbone of its seed by the same probe, nor where
    its features have collapsed to an effective rank below LEAST_RANK.
    """
    rank, untrained = record.final.effective_rank, record.references.untrained if record.references else None
    if rank is not None and rank < LEAST_RANK:
        return False
    return None if rank is None or untrained is None else linear(record) > score_linear(untrained)


def knn(record: Finished) -> float:
    """Return a finished cell's kNN accuracy."""
    return record.final.knn


def probe_sd(score: Score) -> float | None:
    """Return the standard deviation of linear accuracy over the probe's last epochs."""
    return deviation(score.linear) if len(score.linear) > 1 else None


def probe_seed_sd(score: Score) -> float | None:
    """Return the standard deviation of linear accuracy over probe seeds: on the same features, other probes."""
    values = [statistics.fmean(each) for each in (score.linear, *score.further_probes) if each]
    return deviation(values) if len(values) > 1 else None


def target_flops(record: Finished) -> int:
    """Return what making the cell's targets took; nothing without a prior."""
    targets = record.ledger.targets
    return targets.flops if targets else 0


def empty_targets(record: Finished) -> int:
    """Return how many components of the cell's targets are empty."""
    targets = record.ledger.targets
    return targets.empty if targets else 0


def target_joules(record: Finished) -> float | None:
    """Return what the GPU spent on making the cell's targets; None where it was not measured, or not alone."""
    targets = record.ledger.targets
    return targets.joules if targets and targets.alone else None


def phase_seconds(record: Finished, phase: str) -> float | None:
    """Return the seconds of a phase; those of the targets are charged in full, cached or not.

    None where they were not measured alone.
    """
    ledger = record.ledger
    if phase == "targets":
        made = ledger.targets
        return 0.0 if made is None else made.seconds if made.alone else None
    return ledger.seconds.get(phase) if ledger.alone else None


def wall_seconds(record: Finished) -> float | None:
    """Return the seconds of a whole cell; None where they were not measured alone."""
    ledger = record.ledger
    return ledger.wall_seconds if ledger.alone else None


def beside_others(record: Finished) -> list[Company]:
    """Return which of a cell's own costs and those of its targets were not measured alone."""
    ledger = record.ledger
    return [cost for cost in (ledger, ledger.targets) if cost and not cost.alone]


def clock_gap(record: Finished) -> float | None:
    """Return by what share of the wall time a cell's phases miss it, None when they are within the tolerance."""
    ledger = record.ledger
    missed = math.fsum(ledger.seconds.values()) - ledger.wall_seconds
    if abs(missed) <= TOLERANCE * ledger.wall_seconds:
        return None
    return missed / ledger.wall_seconds if ledger.wall_seconds else math.inf
