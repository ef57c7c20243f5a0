"""Is one result no worse than another? Paired by seed, with an interval, or undecided."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

Answer = Literal["yes", "no", "undecided"]
MOST_SEEDS = 1000


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


def interval(values: Sequence[float], confidence: float) -> Interval | None:
    """Return Student's interval of the mean of normal values; None below two values, which have no spread."""
    n = len(values)
    if n < 2:
        return None
    mean = statistics.fmean(values)
    half = float(stdtrit(n - 1, confidence)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half)


def seeds_to_decide(values: Sequence[float], limit: float, confidence: float) -> int | None:
    """Return how many pairs in all would set the mean apart from a limit, were mean and deviation to stay as they are.

    None when a thousand would not.
    """
    distance, deviation = abs(statistics.fmean(values) - limit), statistics.stdev(values)
    for n in range(2, MOST_SEEDS + 1):
        if float(stdtrit(n - 1, confidence)) * deviation / math.sqrt(n) < distance:
            return n
    return None
