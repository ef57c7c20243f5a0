"""What a grid gives now against its baseline, beyond what seeds explain.

Counts that all of the baseline's seeds have in common must be the same. Metrics, and counts that vary, are compared by
the mean over the seeds: its distance from the baseline's mean has Student's t distribution with n - 1 degrees of
freedom in units of s sqrt(1/k + 1/n), where s is the standard deviation of the baseline's n seeds and k seeds were run
now. What has no deviation in the baseline is not compared. All seeds with one result, to the last bit, are red.

A seed that both have is a repeat: initial weights, images and views are the same, so the same code gives the same value
but for the order of floating-point operations. How far that alone moves a kind of metric is known from the baseline's
own repeats, m of all arms together with a root mean square r: the mean difference over k such seeds has Student's t
distribution with m degrees of freedom in units of r / sqrt(k).

Holm's step-down method keeps the chance of one false alarm in all of these comparisons at FALSE_ALARMS.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtr

from bench.check.baseline import Baseline, Key, Sample
from bench.core import stats

FALSE_ALARMS = 0.005  # of all metrics together; docs/check.md has the measured rate
LEAST = 1e-6  # standard deviations of the seeds: what rounding changes at least, where repeats were the same


@dataclass(frozen=True)
class Finding:
    """One comparison. `moved` is in standard deviations of the baseline's seeds, None where a count or a fact is told.

    `p` is the chance of moving this far, or further, in an unchanged tree.
    """

    where: str
    what: str
    before: str
    now: str
    moved: float | None = None
    p: float | None = None
    red: bool = False


def compare(baseline: Baseline, now: Baseline, failures: Mapping[Key, str] | None = None) -> list[Finding]:
    """Return a finding for all that the baseline holds, red where it is not what it was.

    `failures` says why a sample is not there now.
    """
    there = {sample.key: sample for sample in now.samples}
    noise = repeat_differences(baseline)
    common = [(baseline.seeds.index(seed), now.seeds.index(seed)) for seed in now.seeds if seed in baseline.seeds]
    found: list[Finding] = []
    for old in baseline.samples:
        if new := there.get(old.key):
            found += [*_exact(old, new), *_tested(old, new, common, noise)]
        else:
            found.append(Finding(old.where, "result", "there", (failures or {}).get(old.key, "no result"), red=True))
    return [each for each in found if each.p is None] + holm(each for each in found if each.p is not None)


def repeat_differences(baseline: Baseline) -> dict[str, list[float]]:
    """Return by how many standard deviations of the seeds the repeats differ, by kind of metric, of all arms."""
    found: dict[str, list[float]] = {}
    for sample in baseline.samples:
        for name, again in sample.repeats.items():
            deviation = statistics.stdev(sample.metrics[name])
            if deviation:
                moved = [(two - one) / deviation for one, two in zip(sample.metrics[name], again, strict=False)]
                found.setdefault(kind(name), []).extend(moved)
    return found


def kind(metric: str) -> str:
    """Return what kind of metric one is: losses differ in step and part alone."""
    return "loss" if metric.startswith("loss of ") else metric


def holm(findings: Iterable[Finding], family: float = FALSE_ALARMS) -> list[Finding]:
    """Return the findings, those red that Holm's method rejects at a family-wise error rate of `family`."""
    tested = list(findings)
    adjusted = stats.holm([finding.p or 0.0 for finding in tested])
    return [replace(finding, red=p <= family) for finding, p in zip(tested, adjusted, strict=True)]


def same_seeds(baseline: Baseline, now: Baseline) -> tuple[int, int, float]:
    """Return how many metrics of seeds that both have there are, how many differ, and by how many deviations at most.

    A tree that computes what the baseline's did, on such a machine, gives the same to the last bit.
    """
    there = {sample.key: sample for sample in now.samples}
    moved = []
    for old in baseline.samples:
        new = there.get(old.key, old.model_copy(update={"metrics": {}}))
        for name in old.metrics.keys() & new.metrics.keys():
            deviation = statistics.stdev(old.metrics[name])
            for seed in set(now.seeds) & set(baseline.seeds):
                one, other = old.metrics[name][baseline.seeds.index(seed)], new.metrics[name][now.seeds.index(seed)]
                moved.append(abs(other - one) / deviation if deviation else math.inf if one != other else 0.0)
    return len(moved), sum(map(bool, moved)), max(moved, default=0.0)


def _exact(old: Sample, new: Sample) -> Iterator[Finding]:
    """Yield what is compared without a test: counts that do not vary, and what is there in one of the two alone."""
    if _frozen(old, new):
        yield Finding(old.where, "spread over seeds", "there", "none: seeds change nothing", red=True)
    before, now = old.values, new.values
    for name, values in before.items():
        if name not in now:
            yield Finding(old.where, name, _show(values), "not there", red=True)
        elif name in old.counts and len(set(values)) == 1:
            yield Finding(old.where, name, _show(values), _show(now[name]), red=set(now[name]) != set(values))
    for name in now:
        if name not in before:
            yield Finding(old.where, name, "not there", _show(now[name]), red=True)


def _frozen(old: Sample, new: Sample) -> bool:
    """Return whether all seeds have the same result now in every metric that differs between the baseline's seeds."""
    varying = [
        new.metrics[name] for name, values in old.metrics.items() if len(set(values)) > 1 and name in new.metrics
    ]
    return bool(varying) and all(len(values) > 1 and len(set(values)) == 1 for values in varying)


def _tested(
    old: Sample, new: Sample, common: Sequence[tuple[int, int]], noise: Mapping[str, Sequence[float]]
) -> Iterator[Finding]:
    """Yield what is compared by Student's t; `common` are the places of each seed that both have, then and now."""
    now = new.values
    for name, before in old.values.items():
        if name not in now or len(set(before)) == 1:
            continue
        values = now[name]
        deviation = statistics.stdev(before)
        shift = statistics.fmean(values) - statistics.fmean(before)
        t = shift / (deviation * math.sqrt(1 / len(values) + 1 / len(before)))
        yield Finding(old.where, name, _show(before), _show(values), shift / deviation, _p(t, len(before) - 1))
        repeats = noise.get(kind(name))
        if not common or not repeats:
            continue
        one = statistics.fmean(before[then] for then, _ in common)
        other = statistics.fmean(values[later] for _, later in common)
        moved = (other - one) / deviation
        spread = max(math.sqrt(statistics.fmean(value**2 for value in repeats)), LEAST)
        p = _p(moved * math.sqrt(len(common)) / spread, len(repeats))
        yield Finding(old.where, f"{name}, same seeds", f"{one:.4g}", f"{other:.4g}", moved, p)


def _p(t: float, degrees: int) -> float:
    """Return the two-sided p-value of Student's t."""
    return 2 * float(stdtr(degrees, -abs(t)))


def _show(values: Sequence[float]) -> str:
    """Return mean ± sample standard deviation of what varies, else the value."""
    if len(set(values)) == 1:
        return f"{values[0]:,}" if isinstance(values[0], int) else f"{values[0]:.4g}"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g}"
