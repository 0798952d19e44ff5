"""One model in every dtype is the same one, and a trained or replaced one is not."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.tiny import tiny_llava
from tga.vlm.families import family_of
from tga.vlm.fingerprint import model_sample, same_weights, weights_fingerprint, weights_sample

HALVES = (torch.float32, torch.bfloat16, torch.float16)


def spread() -> torch.Tensor:
    """Values of all sizes that weights have, from what float16 flushes to zero to 100."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-9, 2, 4000)
    return sizes * torch.randn(4000, generator=generator)


@pytest.mark.parametrize("path", list(itertools.permutations(HALVES, 2)))
def test_roundings_of_one_value_are_one_value(path: tuple[torch.dtype, torch.dtype]) -> None:
    values = spread()
    for start in range(0, 4000, 16):  # every one of them is sampled
        row = values[start : start + 16]
        rounded = row.to(path[0]).to(path[1])
        assert same_weights(weights_sample([("w", row)]), weights_sample([("w", rounded)])), row


@pytest.mark.parametrize("factor", [1 + 2**-5, 1 - 2**-5, -1.0])
def test_one_value_that_changes_is_seen(factor: float) -> None:
    values = torch.linspace(0.01, 3.0, 16)
    for place in range(16):
        changed = values.clone()
        changed[place] *= factor
        assert not same_weights(weights_sample([("w", values)]), weights_sample([("w", changed)]))


def test_names_and_shapes_count_and_order_does_not() -> None:
    values = torch.ones(4, 4)
    sample = weights_sample([("a", values), ("b", values * 2)])
    assert sample == weights_sample([("b", values * 2), ("a", values)])
    assert not same_weights(sample, weights_sample([("a", values), ("c", values * 2)]))
    assert not same_weights(sample, weights_sample([("a", values.reshape(16)), ("b", values * 2)]))
    assert not same_weights(sample, weights_sample([]))


def test_a_model_of_parts() -> None:
    model, _ = tiny_llava()
    family = family_of(model)
    sample = model_sample(model, family)
    assert same_weights(sample, model_sample(model.half(), family))
    assert len(sample) < 100 * len(list(model.parameters()))
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.1)
    assert not same_weights(sample, model_sample(model, family))


def test_the_hash_is_that_of_bfloat16() -> None:
    layer = torch.nn.Linear(7, 5)
    found = weights_fingerprint({"layer": layer})
    assert len(found) == 16 and found == weights_fingerprint({"layer": layer.to(torch.bfloat16)})
    with torch.no_grad():
        layer.bias += 1
    assert weights_fingerprint({"layer": layer}) != found
