"""A claim on a cost that differs from seed to seed: decided where its bounds are, not where its mean is."""

import math
from pathlib import Path

import numpy as np
import pytest

from bench.report import claims
from bench.report.claims import Judgement
from bench.report.collect import Collected, collect
from bench.report.costs import ALONE, SECONDS, STEPS, Costs
from bench.report.sections.savings import Spending, saving
from bench.store.record import write_record
from tests.report.test_saving import GRID, read

FACTORS = (0.8, 1.0, 1.1, 1.3)  # of the seconds of `own`, by seed; its accuracies differ likewise
SHARES = [0.5 * factor for factor in FACTORS]
CLAIM = '  - {name: half, arm: "*", budget: 0.5, share: 0.55}'


def collected(folder: Path, share: float | None, margin: float = 0.01) -> Collected:
    """Return the records of `own` and `byol` with a claim on `own` at half of the steps."""
    cost = f"share: {share}, " if share else ""
    text = GRID.replace(CLAIM, f"  - {{name: half, arm: own, budget: 0.5, {cost}margin: {margin}}}")
    found = read(folder, text=text)
    for record in found.done:
        if record.cell.arm == "own":
            factor, (first, last) = FACTORS[record.cell.seed], record.curve
            score = last.score.model_copy(update={"linear": (last.score.linear[0] + 0.02 * factor,)})
            last = last.model_copy(update={"seconds": last.seconds * factor, "score": score})
            write_record(record.model_copy(update={"curve": (first, last)}), folder / "records")
    return collect(found.grid, folder / "records")


def judged(folder: Path, share: float | None, margin: float = 0.01) -> Judgement:
    """Return what becomes of the claim in seconds of training."""
    found = collected(folder, share, margin)
    return next(one for one in claims.judged(found)[0] if (one.ledger, one.currency) == (ALONE, SECONDS))


def test_a_cost_is_decided_by_its_bounds(tmp_path: Path) -> None:
    logs = np.log(SHARES)
    mean, deviation = math.exp(logs.mean()), float(logs.std(ddof=1))
    far = math.exp(10 * deviation)
    for share, verdict in (
        (mean * 1.02, "inconclusive"),
        (mean / 1.02, "inconclusive"),
        (mean * far, "reproduced"),
        (mean / far, "not reproduced"),
    ):
        one = judged(tmp_path, share)
        assert one.verdict == verdict, share
        assert one.ratio is not None
        assert one.ratio[0] == pytest.approx(mean)
        assert one.ratio[1] * one.ratio[2] == pytest.approx(mean**2), "the bounds lie around the mean of logarithms"
        assert one.ratio[2] > one.ratio[0] * math.exp(deviation / 2)


def test_pairs_of_seeds_are_compared_and_not_means(tmp_path: Path) -> None:
    found = collected(tmp_path, 0.6, 0.01)
    records = [[r for r in found.done if (r.cell.arm, r.cell.budget) == way] for way in (("own", 0.5), ("byol", 1.0))]
    pairs = list(zip(*(sorted(side, key=lambda record: record.cell.seed) for side in records), strict=True))
    assert np.exp(Costs(found).log_ratios(pairs, SECONDS, ALONE)) == pytest.approx(SHARES)
    assert np.exp(Costs(found).log_ratios(pairs, STEPS, ALONE)) == pytest.approx([0.5] * 4)


def test_as_many_seeds_are_asked_for_as_the_harder_question_needs(tmp_path: Path) -> None:
    """The accuracies are 10 points and a little above byol's: nearly decided at a margin of -12 points."""
    mean = math.exp(np.log(SHARES).mean())
    accuracy = judged(tmp_path, None, -0.1195)
    cost = judged(tmp_path, mean * 1.1, 0.01)
    both = judged(tmp_path, mean * 1.1, -0.1195)
    assert accuracy.verdict == cost.verdict == both.verdict == "inconclusive"
    assert accuracy.seeds is not None
    assert cost.seeds is not None
    assert accuracy.seeds != cost.seeds
    assert both.seeds == max(accuracy.seeds, cost.seeds)


def test_a_saving_is_bounded_by_what_19_of_20_resamples_of_the_seeds_show() -> None:
    """Medians of 25 seeds, of which each reaches the target at its second evaluation, by a bootstrap of our own."""
    draw = np.random.default_rng(5)
    seeds, below, first = tuple(range(25)), np.full(25, 0.2), np.tile([1.0, 0.0], (25, 1))
    spent = draw.lognormal(0.0, 0.5, (2, 25))
    ours, theirs = (
        Spending(seeds, np.stack([below, below + 0.5], axis=1), np.stack([each / 2, each], axis=1), first)
        for each in spent
    )
    found = saving(ours, theirs, 0.6)
    assert found is not None
    drawn = draw.integers(0, 25, (20_000, 25))
    shares = 1 - np.median(spent[0][drawn], axis=1) / np.median(spent[1][drawn], axis=1)
    low, near, far, high = np.quantile(shares, [0.025, 0.05, 0.95, 0.975])
    assert found.low == pytest.approx(low, abs=(near - low) / 2)
    assert found.high == pytest.approx(high, abs=(high - far) / 2)
    assert found.share == pytest.approx(1 - np.median(spent[0]) / np.median(spent[1]))
