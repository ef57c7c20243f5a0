"""Intervals and answers against scipy's own tests, and against simulated experiments."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from bench.core.stats import APART, Answer, Family, holm, interval, p_above, run_of, seeds_to_decide, stands_apart


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


@pytest.mark.parametrize(("needed", "answer"), [(999, 999), (1000, 1000), (1001, None), (1002, None)])
def test_more_than_a_thousand_seeds_are_no_answer(needed: int, answer: int | None) -> None:
    """With deviation 1 and mean 0, the limit lies between what `needed` pairs separate and one pair fewer does."""
    first, last = (stats.t.ppf(0.95, n - 1) / np.sqrt(n) for n in (needed, needed - 1))
    values = [math.sqrt(0.5), -math.sqrt(0.5)]
    assert seeds_to_decide(values, -(first + last) / 2, 0.95) == answer


@pytest.mark.parametrize("limit", [-1.5, -0.2, 0.0, 0.4])
def test_a_p_value_is_scipys(limit: float) -> None:
    values = [0.1, -0.2, 0.35, 0.05]
    assert p_above(values, limit) == pytest.approx(stats.ttest_1samp(values, limit, alternative="greater").pvalue)


def test_equal_values_have_no_chance_and_one_value_shows_nothing() -> None:
    assert [p_above([0.2, 0.2], limit) for limit in (0.1, 0.2, 0.3)] == [0.0, 1.0, 1.0]
    assert p_above([0.2], 0.0) == 1.0


def test_holms_adjusted_values_rise_and_are_those_of_the_closed_test() -> None:
    p = [0.04, 0.01, 0.03, 0.005, 0.9]
    # The adjusted value of one hypothesis is the largest Bonferroni p-value of all intersections that it is part of.
    subsets = [[i for i in range(5) if mask >> i & 1] for mask in range(1, 32)]
    closed = [max(min(1, len(s) * min(p[i] for i in s)) for s in subsets if each in s) for each in range(5)]
    assert holm(p) == pytest.approx(closed)
    assert holm([]) == []


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_value_apart_is_that_of_grubbs_test(n: int) -> None:
    quantile = stats.t.ppf(1 - APART / (2 * n), n - 2)
    critical = (n - 1) / np.sqrt(n) * np.sqrt(quantile**2 / (n - 2 + quantile**2))
    samples = np.random.default_rng(n).normal(size=(2000, n))
    found = [stands_apart(row) for row in samples.tolist()]
    distance = np.abs(samples - samples.mean(axis=1, keepdims=True))
    apart = distance.max(axis=1) / samples.std(axis=1, ddof=1) > critical
    assert [index is not None for index in found] == apart.tolist()
    assert all(index in (None, far) for index, far in zip(found, distance.argmax(axis=1).tolist(), strict=True))
    assert abs(apart.mean() - APART) < 4 * np.sqrt(APART * (1 - APART) / len(samples))


def test_one_collapse_among_three_seeds_stands_apart_and_equal_seeds_do_not() -> None:
    assert stands_apart([0.052, -0.2, 0.05]) == 1
    assert stands_apart([0.1, 0.1, 0.7 - 0.6]) is None
    assert stands_apart([0.1, 0.1, 0.2]) == 2
    assert stands_apart([0.1, 0.5]) is None


SIMULATED = 1000


def at_most(wrong: float, chance: float) -> bool:
    """Whether a share of SIMULATED experiments is no more than a chance, but for what simulating allows."""
    return bool(wrong <= chance + 3 * np.sqrt(chance * (1 - chance) / SIMULATED))


def test_nine_claims_at_their_limit_are_rarely_called_wrongly() -> None:
    """By themselves, one of nine would be in 37 % of experiments."""
    experiments = np.random.default_rng(9).normal(0.0, 1.0, (SIMULATED, 9, 3)).tolist()
    families = [Family([[(values, 0.0)] for values in claims]) for claims in experiments]
    for answer in ("yes", "no"):
        assert at_most(np.mean([answer in (f.answer(i, 0.95) for i in range(9)) for f in families]), 0.05)
    alone = [any(p_above(values, 0.0) <= 0.05 for values in claims) for claims in experiments]
    assert np.mean(alone) == pytest.approx(0.37, abs=0.05)


def test_a_claim_of_accuracy_and_cost_at_both_limits_is_rarely_called_wrong() -> None:
    """Wrong where either test says so, it would be in 9.7 % of experiments."""
    experiments = np.random.default_rng(2).normal(0.0, 1.0, (SIMULATED, 2, 3)).tolist()
    answers = [Family([[(accuracy, 0.0), (cost, 0.0)]]).answer(0, 0.95) for accuracy, cost in experiments]
    assert at_most(np.mean([answer == "no" for answer in answers]), 0.05)
    assert at_most(np.mean([answer == "yes" for answer in answers]), 0.05**2)
    either = [any(p_above([-v for v in values], 0.0) <= 0.05 for values in both) for both in experiments]
    assert np.mean(either) == pytest.approx(0.0975, abs=0.03)


def test_a_claim_with_a_good_and_a_bad_part_is_right_by_the_worse_and_wrong_by_the_worse() -> None:
    good, bad = ([1.0, 1.1, 0.9], 0.0), ([-1.0, -1.1, -0.9], 0.0)
    assert [Family([parts]).answer(0, 0.95) for parts in ([good], [bad], [good, bad])] == ["yes", "no", "no"]


@pytest.mark.parametrize("sign", [1, -1])
def test_so_many_seeds_decide_a_claim_among_others(sign: int) -> None:
    """At that number of seeds, and not at one fewer, Holm's method has an answer; the others' stay."""
    values, clear = [sign * v for v in (0.03, -0.02, 0.02)], [1.0, 1.01, 0.99]
    family = Family([[(values, 0.0)], [(clear, 0.0)], [(clear, 5.0)], [([0.1, -0.1], 0.0)]])
    assert [family.answer(index, 0.95) for index in range(4)] == ["undecided", "yes", "no", "undecided"]
    needed = family.seeds(0, 0.95)
    assert needed is not None
    mean, deviation = abs(np.mean(values)), np.std(values, ddof=1)
    p_values = [stats.t.sf(mean / deviation * np.sqrt(n), n - 1) for n in (needed - 1, needed)]
    # One of the four is decided in either direction, so that this one is the smallest of three.
    assert [p <= 0.05 / 3 for p in p_values] == [False, True]
    assert all(one > other for one, other in pairwise(p_values))


def test_a_mean_at_the_limit_is_decided_by_no_number_of_seeds() -> None:
    family = Family([[([0.1, -0.1], 0.0)]])
    assert [family.seeds(0, confidence) for confidence in (0.5, 0.95)] == [None, None]


def test_a_claim_is_wrong_by_one_of_its_parts_at_half_the_level() -> None:
    values = [-0.03, 0.02, -0.02]
    needed = Family([[(values, 0.0), ([0.1, 0.2, 0.3], 0.0)]]).seeds(0, 0.95)
    assert needed == seeds_to_decide(values, 0.0, 0.975) != seeds_to_decide(values, 0.0, 0.95)


@pytest.mark.parametrize("budgets", [2, 3, 5])
def test_the_smallest_of_several_budgets_at_the_limit_is_rarely_found(budgets: int) -> None:
    """Taking the first success upwards, it would be found in 9, 13 and 18 % of experiments.

    All budgets are paired with the same seeds of the full one, so that their differences go together.
    """
    draws = np.random.default_rng(budgets).normal(0.0, 1.0, (4000, budgets + 1, 3))
    differences = draws[:, :-1] - draws[:, -1:]
    t = differences.mean(axis=2) / differences.std(axis=2, ddof=1) * np.sqrt(3)
    yes = t > stats.t.ppf(0.95, 2)
    found = [found.above(0.0) for row in differences[:20].reshape(-1, 3).tolist() if (found := interval(row, 0.95))]
    assert [each == "yes" for each in found] == yes[:20].ravel().tolist()
    answers: list[list[Answer]] = [["yes" if each else "undecided" for each in row] for row in yes.tolist()]
    wrong = np.mean([run_of(reversed(row), "yes") > 0 for row in answers])
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert wrong < yes.any(axis=1).mean() - 0.02


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
