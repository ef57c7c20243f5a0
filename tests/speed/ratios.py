"""Ratios of time inside one run: two variants take turns, and their medians are compared."""

import resource
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the children it has waited for: load beside them changes it little."""
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def gpu_seconds() -> float:
    """Return the time at which the GPU has done all that it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def ratio(
    benchmark: BenchmarkFixture,
    ours: Callable[[], object],
    other: Callable[[], object],
    name: str,
    capsys: pytest.CaptureFixture[str],
    rounds: int = 7,
) -> None:
    """Time `ours` and, before each of its rounds, `other`; print the time of `ours` as a share of the other's.

    Each has one round more at the start that is not counted. Both are timed with the benchmark's timer.
    """
    timer, spent = benchmark._timer, list[float]()

    def setup() -> None:
        began = timer()
        other()
        spent.append(timer() - began)

    benchmark.pedantic(ours, setup=setup, rounds=rounds, warmup_rounds=1)
    if not benchmark.enabled:
        return
    shares = [one / two for one, two in zip(benchmark.stats.stats.data, spent[-rounds:], strict=True)]
    found = statistics.median(benchmark.stats.stats.data) / statistics.median(spent[-rounds:])
    benchmark.extra_info[name] = found
    with capsys.disabled():
        print(f"\n{benchmark.name}: {found:.3f} x {name} ({min(shares):.3f} to {max(shares):.3f} in {rounds} rounds)")
