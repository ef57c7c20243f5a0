"""Intervals and answers against scipy's own tests, and against simulated experiments."""

import numpy as np
import pytest
from scipy import stats

from bench.stats import interval, seeds_to_decide


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_bounds_are_those_of_students_test(n: int, confidence: float) -> None:
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    found = interval(list(values), confidence)
    assert found is not None
    test = stats.ttest_1samp(values, 0.0)
    expected = test.confidence_interval(2 * confidence - 1)  # two-sided, with 1 - confidence on each side
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.n, found.mean) == (n, pytest.approx(values.mean()))


@pytest.mark.parametrize("limit", [-1.5, -0.5, -0.2, 0.0, 0.4, 1.5])
def test_an_answer_is_that_of_a_one_sided_test(limit: float) -> None:
    values = [0.1, -0.2, 0.35, 0.05]
    found = interval(values, 0.95)
    assert found is not None
    greater, less = (stats.ttest_1samp(values, limit, alternative=side).pvalue < 0.05 for side in ("greater", "less"))
    assert found.above(limit) == ("yes" if greater else "no" if less else "undecided")


def test_one_value_has_no_interval() -> None:
    assert interval([0.5], 0.95) is None


def test_equal_values_decide_at_once() -> None:
    found = interval([0.2, 0.2], 0.95)
    assert found is not None
    assert (found.above(0.1), found.above(0.3)) == ("yes", "no")


def test_so_many_seeds_decide_and_one_fewer_does_not() -> None:
    values = [0.03, -0.02, 0.01]
    needed = seeds_to_decide(values, -0.01, 0.95)
    assert needed is not None
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    for n, decides in ((needed, True), (needed - 1, False)):
        low = mean - stats.t.ppf(0.95, n - 1) * deviation / np.sqrt(n)
        assert (low > -0.01) == decides
    assert seeds_to_decide(values, float(mean), 0.95) is None


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wrong_answers_are_as_rare_as_the_confidence_says(n: int, confidence: float) -> None:
    """At the limit itself either answer is wrong: each must come in a share 1 - confidence of 8,000 experiments."""
    experiments = np.random.default_rng(n).normal(0.0, 1.0, (8000, n))
    answers = [found.above(0.0) for row in experiments if (found := interval(row.tolist(), confidence))]
    deviation = np.sqrt(confidence * (1 - confidence) / len(answers))
    for answer in ("yes", "no"):
        assert abs(answers.count(answer) / len(answers) - (1 - confidence)) < 4 * deviation
    # And away from it they are rarer.
    better = [found.above(-0.5) for row in experiments if (found := interval(row.tolist(), confidence))]
    assert better.count("no") / len(better) < 1 - confidence
