"""Smooth inverse frequency against its formula in float64."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from tga.alignment.token_weights import smooth_inverse_frequency


def test_weights_are_those_of_the_formula() -> None:
    counts = [0, 1, 10, 989]
    weights = smooth_inverse_frequency(torch.tensor(counts), 1e-3)
    a = Fraction(1, 1000)
    exact = [float(a / (a + Fraction(count, 1000))) for count in counts]
    assert exact[:2] == [1.0, 0.5]  # never seen; a share of exactly a
    torch.testing.assert_close(weights.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-6, atol=0)
    assert weights.dtype == torch.float32


def test_a_large_a_weighs_all_alike() -> None:
    weights = smooth_inverse_frequency(torch.tensor([0, 1, 10, 989]), 1e9)
    torch.testing.assert_close(weights, torch.ones(4))


def test_the_smallest_a_weighs_nothing_as_nothing() -> None:
    assert smooth_inverse_frequency(torch.tensor([0, 5, 5]), 1e-50).min() > 0


@pytest.mark.parametrize(("counts", "a"), [([0, 0], 1e-3), ([1, 2], 0.0), ([1, 2], float("nan"))])
def test_no_tokens_or_no_smoothing_is_refused(counts: list[int], a: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        smooth_inverse_frequency(torch.tensor(counts), a)
