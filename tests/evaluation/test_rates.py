"""Intervals against scipy and against formulas written independently."""

from __future__ import annotations

import math

import pytest

from tga.evaluation.rates import mean_interval, paired_difference, student_t_quantile, student_t_within, wilson

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 3), (37, 200), (199, 200), (0, 1)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    rate = wilson(k, n)
    reference = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert rate.value == k / n and rate.n == n
    assert rate.low == pytest.approx(reference.low, abs=1e-12)
    assert rate.high == pytest.approx(reference.high, abs=1e-12)


def test_wilson_ends_solve_the_score_equation() -> None:
    rate, z = wilson(7, 40), 1.959963984540054
    for end in (rate.low, rate.high):
        assert abs(7 / 40 - end) / math.sqrt(end * (1 - end) / 40) == pytest.approx(z, rel=1e-9)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 4), (5, 4)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= successes <= trials"):
        wilson(k, n)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 6, 9, 10, 29, 30, 101])
def test_student_t_equals_scipy(degrees: int) -> None:
    assert student_t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-10)
    assert student_t_quantile(degrees, 0.99) == pytest.approx(stats.t.ppf(0.995, degrees), rel=1e-10)
    for t in (0.1, 1.0, 3.7):
        assert student_t_within(t, degrees) == pytest.approx(2 * stats.t.cdf(t, degrees) - 1, rel=1e-10)


def test_mean_interval_equals_scipy() -> None:
    values = [0.1, 0.4, 0.35, 0.2, 0.6]
    interval = mean_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert interval.mean == pytest.approx(0.33)
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert interval.n == 5


def test_one_value_has_no_interval() -> None:
    interval = mean_interval([0.25])
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.25, None, None, 1)
    assert interval.excludes_zero is None


def test_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_paired_difference_is_the_interval_of_the_paired_t_test() -> None:
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.55, 7: 0.9}, {0: 0.1, 1: 0.35, 2: 0.05, 5: 0.2}
    interval = paired_difference(ours, theirs)
    test = stats.ttest_rel([0.5, 0.7, 0.55], [0.1, 0.35, 0.05]).confidence_interval(0.95)
    assert interval.n == 3
    assert interval.mean == pytest.approx((0.4 + 0.35 + 0.5) / 3)
    assert (interval.low, interval.high) == (pytest.approx(test.low), pytest.approx(test.high))
    assert interval.excludes_zero is True


def test_an_interval_over_zero_is_not_significant() -> None:
    assert mean_interval([0.1, -0.1, 0.05]).excludes_zero is False
