"""Tests of non-inferiority, paired by seed, for one claim or several."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

Answer = Literal["yes", "no", "undecided"]
Parts = Sequence[tuple[Sequence[float], float]]
MOST_SEEDS = 1000
APART = 0.1  # how often a value of normal ones is said to stand apart
ROUNDING = 1e-9  # of accuracies and of logarithms of costs


@dataclass(frozen=True)
class Interval:
    """The mean of n paired values and its one-sided bounds, each of which the true mean passes with 1 - confidence."""

    n: int
    mean: float
    low: float
    high: float

    def above(self, limit: float) -> Answer:
        """Tell whether the true mean lies above a limit: "no" when it lies below."""
        return "yes" if self.low > limit else "no" if self.high < limit else "undecided"


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation (ddof 1) of at least two values, faster than `statistics.stdev`."""
    mean = statistics.fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def interval(values: Sequence[float], confidence: float) -> Interval | None:
    """Return Student's interval of the mean of normal values; None below two values, which have no spread."""
    n = len(values)
    if n < 2:
        return None
    mean = statistics.fmean(values)
    half = float(stdtrit(n - 1, confidence)) * deviation(values) / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half)


def p_above(values: Sequence[float], limit: float) -> float:
    """Return the p-value of Student's one-sided test that the mean of normal values is above a limit.

    1 below two values, which show nothing.
    """
    n = len(values)
    if n < 2:
        return 1.0
    distance, error = statistics.fmean(values) - limit, deviation(values) / math.sqrt(n)
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stdtr(n - 1, -distance / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down method.

    Rejecting those up to a level keeps the chance of any false rejection among all of them at that level.
    """
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(largest, 1.0)
    return adjusted


def stands_apart(values: Sequence[float]) -> int | None:
    """Return the index of the value that the spread of the others does not explain, None without one.

    Grubbs' test: of normal values, one is found in a share APART of all samples.
    """
    n = len(values)
    if n < 3:
        return None
    mean = statistics.fmean(values)
    index = max(range(n), key=lambda each: abs(values[each] - mean))
    others = [*values[:index], *values[index + 1 :]]
    error = max(deviation(others) * math.sqrt(1 + 1 / (n - 1)), ROUNDING)
    distance = abs(values[index] - statistics.fmean(others))
    return index if 2 * n * float(stdtr(n - 2, -distance / error)) < APART else None


def seeds_to_decide(values: Sequence[float], limit: float, confidence: float) -> int | None:
    """Return the number of pairs that would separate the mean from a limit, or None above a thousand.

    Mean and deviation are taken to stay the same.
    """
    distance, spread = abs(statistics.fmean(values) - limit), deviation(values)
    n = np.arange(2, MOST_SEEDS + 1)
    enough = n[stdtrit(n - 1, confidence) * spread / np.sqrt(n) < distance]
    return int(enough[0]) if len(enough) else None


def run_of(answers: Iterable[Answer], answer: Answer) -> int:
    """Return the length of the initial run of this answer.

    Tests of one confidence in a fixed order, up to the first that fails, have that confidence together.
    """
    return sum(1 for _ in takewhile(lambda each: each == answer, answers))


@dataclass(frozen=True)
class Family:
    """Claims that are judged together by Holm's method.

    A claim is parts: paired values and the limit that their mean is above if the claim is right. It is right where
    every part is, the p-value of which is the largest of theirs, and wrong where any part is, the p-value of which is
    the smallest of theirs times their number (Bonferroni).
    """

    claims: Sequence[Parts]

    @cached_property
    def right(self) -> list[float]:
        """The adjusted p-values of each claim's being right."""
        return holm([max(p_above(*part) for part in parts) for parts in self.claims])

    @cached_property
    def wrong(self) -> list[float]:
        """The adjusted p-values of each claim's being wrong."""
        below = [[p_above([-value for value in values], -limit) for values, limit in parts] for parts in self.claims]
        return holm([min(1.0, len(each) * min(each)) for each in below])

    def answer(self, index: int, confidence: float) -> Answer:
        """Tell whether a claim is right, or wrong, with this confidence in all answers of the kind together."""
        level = 1 - confidence
        return "yes" if self.right[index] <= level else "no" if self.wrong[index] <= level else "undecided"

    def seeds(self, index: int, confidence: float) -> int | None:
        """Return the number of pairs that would decide a claim if all else stayed the same.

        None when a thousand would not, and below two pairs.
        """
        parts = self.claims[index]
        if any(len(values) < 2 for values, _ in parts):
            return None
        below = [part for part in parts if statistics.fmean(part[0]) <= part[1]]
        undecided = max(1, sum(p > 1 - confidence for p in (self.wrong if below else self.right)))
        level = (1 - confidence) / undecided / (len(parts) if below else 1)
        needed = [seeds_to_decide(values, limit, 1 - level) or math.inf for values, limit in below or parts]
        most = min(needed) if below else max(needed)
        return int(most) if math.isfinite(most) else None
