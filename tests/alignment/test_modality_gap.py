"""The modality gap against the public implementation's values and an independent float64 computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from tga.alignment.modality_gap import frechet_distance, layer_gap, modality_integration_rate, replace_outliers
from tga.errors import UserError

ORACLE = dict(np.load(Path(__file__).parents[1] / "data" / "mir.npz"))


def gaps(root: str) -> list[float]:
    sides = zip(torch.from_numpy(ORACLE["vision"]), torch.from_numpy(ORACLE["text"]), strict=True)
    return [layer_gap(vision, text, root=root).fid for vision, text in sides]


def slow_fid(vision: np.ndarray, text: np.ndarray) -> float:
    """In NumPy and SciPy: text-centred scale, outliers, and SciPy's root of the product of the covariances."""
    scale = 1 / np.linalg.norm(text, axis=1).mean()
    sides = []
    for states in (vision * scale, text * scale):
        norms = np.linalg.norm(states, axis=1)
        far = np.abs(norms - np.sort(norms)[(len(norms) - 1) // 2]) > 3 * norms.std(ddof=1)
        sides.append(np.where(far[:, None], np.sort(states, axis=0)[(len(states) - 1) // 2], states))
    covariances = [np.cov(side, rowvar=False) for side in sides]
    root = np.real(scipy.linalg.sqrtm(covariances[0] @ covariances[1]))
    difference = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    return float(difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root))


def test_the_accurate_measure_equals_the_public_one() -> None:
    """The public code computes in float32: five digits agree."""
    found = gaps("accurate")
    np.testing.assert_allclose(found, ORACLE["per_layer_accurate"], rtol=2e-5)
    assert modality_integration_rate(found) == pytest.approx(float(ORACLE["mir_accurate"]), abs=1e-5)


def test_the_fast_measure_is_the_public_one_and_no_root() -> None:
    """In float64 the iteration stays where it starts. In float32 it drifts by rounding errors, up to a third here, and
    those depend on the linear algebra library: that is as near as the public code's values can be met anywhere."""
    found = gaps("fast")
    np.testing.assert_allclose(found, ORACLE["per_layer_fast"], rtol=0.35)
    assert modality_integration_rate(found) == pytest.approx(float(ORACLE["mir_fast"]), abs=0.1)
    assert found[0] > 1.5 * gaps("accurate")[0]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(60, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    covariances = [np.cov(side.numpy(), rowvar=False) for side in (a, b)]
    difference = (a.mean(dim=0) - b.mean(dim=0)).numpy()
    product = np.trace(covariances[0] + covariances[1] - 2 * covariances[0] @ covariances[1])
    assert frechet_distance(a, b, root="fast") == pytest.approx(difference @ difference + product, rel=1e-10)


def test_every_layer_equals_an_independent_float64_computation() -> None:
    expected = [
        slow_fid(v, t) for v, t in zip(*(ORACLE[k].astype(np.float64) for k in ("vision", "text")), strict=True)
    ]
    np.testing.assert_allclose(gaps("accurate"), expected, rtol=1e-10)


def test_the_order_of_the_tokens_does_not_matter() -> None:
    vision, text = torch.from_numpy(ORACLE["vision"][2]), torch.from_numpy(ORACLE["text"][2])
    found = vars(layer_gap(vision, text))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(side), generator=generator) for side in (vision, text)]
        assert vars(layer_gap(vision[orders[0]], text[orders[1]])) == pytest.approx(found, rel=1e-12)


def test_fewer_tokens_than_dimensions_are_no_trouble_for_the_accurate_root() -> None:
    """Text of 4 words in 16 dimensions: the covariance has rank 3."""
    generator = torch.Generator().manual_seed(0)
    vision = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    text = torch.randn(4, 16, generator=generator, dtype=torch.float64)[torch.arange(40) % 4]
    found = frechet_distance(vision, text)
    covariances = [np.cov(side.numpy(), rowvar=False) for side in (vision, text)]
    values = np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(min=0)
    roots = np.sqrt(np.where(values > 1e-12 * values.max(), values, 0)).sum()
    difference = (vision.mean(dim=0) - text.mean(dim=0)).numpy()
    expected = difference @ difference + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
    assert found == pytest.approx(expected, rel=1e-9)
    shuffled = frechet_distance(vision.flip(0), text.flip(0))
    assert shuffled == pytest.approx(found, rel=1e-12)


def test_equal_sides_have_no_distance() -> None:
    states = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = layer_gap(states, states)
    assert found.fid == pytest.approx(0.0, abs=1e-12) and found.l2 == 0.0
    assert found.cosine == pytest.approx(0.0, abs=1e-12) and found.log_norm_ratio == 0.0


def test_the_gaps_of_the_centroids() -> None:
    vision, text = ORACLE["vision"][1].astype(np.float64), ORACLE["text"][1].astype(np.float64)
    found = layer_gap(torch.from_numpy(vision), torch.from_numpy(text))
    a, b = vision.mean(axis=0), text.mean(axis=0)
    assert found.l2 == pytest.approx(np.linalg.norm(a - b), rel=1e-12)
    assert found.cosine == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9)
    norms = np.linalg.norm(vision, axis=1).mean() / np.linalg.norm(text, axis=1).mean()
    assert found.log_norm_ratio == pytest.approx(np.log(norms), rel=1e-12)


def test_the_measure_does_not_depend_on_the_unit() -> None:
    """The text's mean norm is the unit, so a model with larger states has no larger distance."""
    vision, text = torch.from_numpy(ORACLE["vision"][0]), torch.from_numpy(ORACLE["text"][0])
    assert layer_gap(vision * 8, text * 8).fid == pytest.approx(layer_gap(vision, text).fid, rel=1e-9)


def test_only_outliers_become_the_median() -> None:
    states = torch.ones(40, 3, dtype=torch.float64) + 0.01 * torch.arange(40, dtype=torch.float64)[:, None]
    states[7] = 100.0
    found = replace_outliers(states)
    assert torch.equal(found[7], states.median(dim=0).values)
    others = torch.arange(40) != 7
    assert torch.equal(found[others], states[others])


def test_mistakes_are_named() -> None:
    states = torch.ones(4, 2)
    with pytest.raises(UserError, match="Unknown matrix root.*Given: exact. Allowed: accurate, fast"):
        layer_gap(states, states, root="exact")
    with pytest.raises(UserError, match="at least two tokens.*1 text tokens"):
        layer_gap(states, states[:1])
    with pytest.raises(UserError, match="root: accurate"):
        layer_gap(torch.zeros(4, 2), torch.ones(4, 2), root="fast")
