"""The corpus mean equals NumPy's, whatever the batches; centring removes the shared direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tga.alignment.centring import corpus_mean
from tga.alignment.tga import cosine


def test_mean_over_unequal_batches() -> None:
    values = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    parts = [torch.from_numpy(values[:, a:b]) for a, b in ((0, 4), (4, 4), (4, 7))]
    mean = corpus_mean(iter(parts))
    np.testing.assert_allclose(mean.numpy(), values.astype(np.float64).mean(axis=1), rtol=1e-6)
    assert mean.dtype == torch.float32


def test_small_differences_survive_a_large_mean_over_many_batches() -> None:
    batches = (torch.full((1, 10, 1), 1000.0 + (i % 2) * 0.001) for i in range(1000))
    assert corpus_mean(batches).item() == pytest.approx(1000.0005, abs=1e-4)


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="corpus without captions"):
        corpus_mean([torch.zeros(2, 0, 3)])


def test_centring_uncovers_what_the_shared_direction_hides() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 50, 16, generator=generator) + 10.0
    centre = corpus_mean([states])
    assert cosine(states[:, :25], states[:, 25:]).min() > 0.9
    centred = states - centre.unsqueeze(1)
    assert cosine(centred[:, :25], centred[:, 25:]).abs().mean() < 0.3
