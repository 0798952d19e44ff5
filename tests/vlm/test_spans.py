"""Mean pooling: right values, indifferent to what stands outside the mask, no NaN for an empty span."""

from __future__ import annotations

import numpy as np
import torch

from tga.vlm.spans import mean_pool


def test_pooling_equals_numpy_and_ignores_what_is_outside() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, 6, 5))
    mask = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1]], dtype=bool)
    poisoned = torch.from_numpy(np.where(mask[..., None], hidden, np.nan)).float()
    pooled, present = mean_pool(poisoned, torch.from_numpy(mask))
    expected = np.stack([hidden[i][mask[i]].mean(axis=0) for i in range(3)])
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-5)
    assert present.tolist() == [True, True, True]
    assert pooled.dtype == torch.float32


def test_weighted_pooling_equals_numpy_and_ignores_what_is_outside() -> None:
    rng = np.random.default_rng(1)
    hidden, weights = rng.normal(size=(3, 6, 5)), rng.uniform(0.01, 1.0, size=(3, 6))
    mask = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0]], dtype=bool)
    poisoned = torch.from_numpy(np.where(mask[..., None], hidden, np.nan)).requires_grad_()
    outside = torch.from_numpy(np.where(mask, weights, np.inf))
    pooled, present = mean_pool(poisoned, torch.from_numpy(mask), outside)
    expected = [np.average(hidden[i][mask[i]], axis=0, weights=weights[i][mask[i]]) for i in range(2)]
    np.testing.assert_allclose(pooled.detach().numpy(), np.stack([*expected, np.zeros(5)]), rtol=1e-12)
    assert present.tolist() == [True, True, False]
    pooled.sum().backward()
    assert poisoned.grad is not None
    shares = np.where(mask, weights, 0.0) / np.where(mask, weights, 0.0).sum(axis=1, keepdims=True).clip(min=1e-300)
    np.testing.assert_allclose(poisoned.grad.numpy(), np.repeat(shares[..., None], 5, axis=2), rtol=1e-12)


def test_equal_weights_are_the_plain_mean() -> None:
    hidden, mask = torch.randn(2, 4, 3), torch.tensor([[True] * 4, [True, False, False, True]])
    weighted, _ = mean_pool(hidden, mask, torch.full((2, 4), 0.25))
    torch.testing.assert_close(weighted, mean_pool(hidden, mask)[0])


def test_an_empty_span_gives_zeros_absence_and_a_finite_gradient() -> None:
    hidden = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[False] * 4, [True, False, False, True]])
    pooled, present = mean_pool(hidden, mask)
    assert pooled[0].tolist() == [0.0, 0.0, 0.0]
    assert present.tolist() == [False, True]
    pooled.sum().backward()
    expected = torch.tensor([[0.0] * 4, [0.5, 0.0, 0.0, 0.5]])
    torch.testing.assert_close(hidden.grad, expected.unsqueeze(-1).expand(2, 4, 3))


def test_bfloat16_is_summed_in_float32() -> None:
    hidden = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    hidden[0, 0] = 3.0
    pooled, _ = mean_pool(hidden, torch.ones(1, 1000, dtype=torch.bool))
    torch.testing.assert_close(pooled, torch.full((1, 2), 1.002), rtol=1e-6, atol=0)
    assert pooled.dtype == torch.float32


def test_float64_stays_float64() -> None:
    pooled, _ = mean_pool(torch.randn(1, 2, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool))
    assert pooled.dtype == torch.float64
