"""The gate: what a grid gives now against its baseline, beyond what seeds explain."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtr

from bench.check.baseline import Baseline, Key, Sample
from bench.core import stats

FALSE_ALARMS = 0.005  # of all metrics together; docs/check.md has the measured rate
LEAST = 1e-6  # standard deviations of the seeds: what rounding changes at least, where repeats were the same
PACE = "seconds of training"  # what a finding on time is of


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

    Counts that all of the baseline's seeds have in common must be the same. Metrics, and counts that vary, are
    compared by the mean over the seeds: its distance from the baseline's mean has Student's t distribution with n - 1
    degrees of freedom in units of s sqrt(1/k + 1/n), where s is the standard deviation of the baseline's n seeds and k
    seeds were run now. Holm's step-down method keeps the chance of one false alarm in all of them at FALSE_ALARMS. What
    has no deviation in the baseline is not compared. All seeds with one result, to the last bit, are red.

    A seed that both have is a repeat: initial weights, images and views are the same, so the same code gives the same
    value but for the order of floating-point operations. How far that alone moves a kind of metric is known from the
    baseline's own repeats, m of all arms together with a root mean square r: the mean difference over k such seeds has
    Student's t distribution with m degrees of freedom in units of r / sqrt(k). It is one of the comparisons above.

    `failures` says why a sample is not there now.
    """
    there = {sample.key: sample for sample in now.samples}
    common = [seed for seed in now.seeds if seed in baseline.seeds]
    rounding = repeat_differences(baseline)
    exact: list[Finding] = []
    tested: list[Finding] = []
    for old in baseline.samples:
        new = there.get(old.key)
        if new is None:
            why = (failures or {}).get(old.key, "no result")
            exact.append(_finding(old, "result", "there", why, red=True))
            continue
        if len(now.seeds) > 1 and _frozen(old, new):
            exact.append(_finding(old, "spread over seeds", "there", "none: seeds change nothing", red=True))
        for name, before in (old.counts | old.metrics).items():
            values: Sequence[float] | None = (new.counts | new.metrics).get(name)
            if values is None:
                exact.append(_finding(old, name, _show(before), "not there", red=True))
            elif name in old.counts and len(set(before)) == 1:
                exact.append(_finding(old, name, _show(before), _show(values), red=set(values) != set(before)))
            elif len(set(before)) > 1:
                tested.append(_tested(old, name, before, values))
                if common and (noise := rounding.get(kind(name))):
                    pairs = [(before[baseline.seeds.index(s)], values[now.seeds.index(s)]) for s in common]
                    tested.append(_repeated(old, name, before, pairs, noise))
        for name in (new.counts | new.metrics).keys() - (old.counts | old.metrics).keys():
            exact.append(_finding(old, name, "not there", _show((new.counts | new.metrics)[name]), red=True))
    return exact + holm(tested)


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
    count, differ, most = 0, 0, 0.0
    for old in baseline.samples:
        new = there.get(old.key)
        for name, before in old.metrics.items():
            if new is None or name not in new.metrics:
                continue
            deviation = statistics.stdev(before)
            for seed in set(now.seeds) & set(baseline.seeds):
                one, other = before[baseline.seeds.index(seed)], new.metrics[name][now.seeds.index(seed)]
                count += 1
                if one != other:
                    differ += 1
                    most = max(most, abs(other - one) / deviation if deviation else math.inf)
    return count, differ, most


def _frozen(old: Sample, new: Sample) -> bool:
    """Return whether all seeds have the same result now in every metric that differs between the baseline's seeds."""
    varying = [name for name, values in old.metrics.items() if len(set(values)) > 1 and name in new.metrics]
    return bool(varying) and all(len(set(new.metrics[name])) == 1 for name in varying)


def _tested(old: Sample, name: str, before: Sequence[float], values: Sequence[float]) -> Finding:
    shift = statistics.fmean(values) - statistics.fmean(before)
    deviation = statistics.stdev(before)
    t = shift / (deviation * math.sqrt(1 / len(values) + 1 / len(before)))
    p = 2 * float(stdtr(len(before) - 1, -abs(t)))
    return _finding(old, name, _show(before), _show(values), moved=shift / deviation, p=p)


def _repeated(
    old: Sample, name: str, before: Sequence[float], pairs: Sequence[tuple[float, float]], noise: Sequence[float]
) -> Finding:
    """Return the comparison of the same seeds, (then, now) of each, with what repeats differed by."""
    then, now = (statistics.fmean(side) for side in zip(*pairs, strict=True))
    moved = (now - then) / statistics.stdev(before)
    spread = max(math.sqrt(statistics.fmean(value**2 for value in noise)), LEAST)
    p = 2 * float(stdtr(len(noise), -abs(moved) * math.sqrt(len(pairs)) / spread))
    return _finding(old, f"{name}, same seeds", f"{then:.4g}", f"{now:.4g}", moved=moved, p=p)


def _finding(
    sample: Sample,
    what: str,
    before: str,
    now: str,
    moved: float | None = None,
    p: float | None = None,
    red: bool = False,
) -> Finding:
    return Finding(f"{sample.dataset} {sample.arm} {sample.budget:.0%}", what, before, now, moved, p, red)


def _show(values: Sequence[float]) -> str:
    """Return mean ± sample standard deviation of what varies, else the value."""
    if len(set(values)) == 1:
        return f"{values[0]:,}" if isinstance(values[0], int) else f"{values[0]:.4g}"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g}"
