"""Rates and means with 95 % intervals.

Three statistics carry every table of this package: a share of judged answers with its Wilson interval, a mean over
seeds with Student's t-interval, and the mean of paired differences over seeds, also with a t-interval. The quantile
of Student's t is computed here from the closed form for whole degrees of freedom, so that nothing but the standard
library is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """A share `value` of `n` trials with the ends `low` and `high` of its interval; all NaN-free, in [0, 1]."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds; `low` and `high` are None for one seed, where no interval exists."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool | None:
        """True where the interval lies wholly on one side of zero; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0.0 or self.high < 0.0


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Rate:
    """Share of successes with the Wilson score interval (Wilson 1927, without continuity correction).

    Raises ValueError for no trials or for successes outside 0..trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"a rate needs 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    scale = 1.0 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Rate(share, low, high, trials)


def student_t_within(t: float, degrees: int) -> float:
    """P(|T| < t) for Student's T with whole degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    if degrees == 1:
        return 2 * theta / math.pi
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term
    for k in range(2 + odd, degrees - 1, 2):  # each term is the one before times (k - 1) / k * cos^2
        term *= (k - 1) / k * cosine * cosine
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def student_t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| < t) = confidence, by bisection to machine precision; degrees >= 1."""
    if degrees < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, got {degrees}")
    low, high = 0.0, 1.0
    while student_t_within(high, degrees) < confidence:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if student_t_within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean over seeds with Student's t-interval; one value has a mean and no interval; none raises ValueError."""
    if not values:
        raise ValueError("a mean needs at least one value")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    half = student_t_quantile(len(values) - 1, confidence) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = CONFIDENCE
) -> Interval:
    """Mean of `ours - theirs` over the seeds both have, with the paired t-interval; no common seed raises ValueError.

    ours, theirs: seed -> value.
    """
    common = sorted(ours.keys() & theirs.keys())
    return mean_interval([ours[seed] - theirs[seed] for seed in common], confidence)
