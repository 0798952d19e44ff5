"""Shifts against independent float64 computations: of a dataset, of its first component, and of single requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.steering.requests import PROMPTS, Setup, in_float64, tiny_setup
from tests.steering.test_states import expected_states
from tga.errors import UserError
from tga.steering.cmrm import SKETCH_ROWS, RequestShift, dataset_shift

LAYERS = (1, 2, 3)


def in_batches(differences: Tensor, size: int) -> list[Tensor]:
    return list(differences.split(size, dim=1))


@pytest.fixture(scope="module")
def differences() -> Tensor:
    """[layers, anchors, width]: one direction by layer of varying size, and noise."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(3, 1, 16, generator=generator)
    sizes = 1 + 0.5 * torch.randn(3, 50, 1, generator=generator)
    return sizes * directions + 0.3 * torch.randn(3, 50, 16, generator=generator)


def test_the_request_shift_is_the_difference_of_two_prompts(tmp_path: Path):
    """In float64, each prompt alone, against transformers' own hidden states."""
    setup = in_float64(tiny_setup(tmp_path))
    shift = RequestShift(setup.model, setup.family, LAYERS, setup.blank)
    pictured, plain = setup.rows(PROMPTS, "blank.png"), setup.rows(PROMPTS, None)
    found = shift(pictured, plain)
    expected = expected_states(setup, pictured, "blank.png") - expected_states(setup, plain, None)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().mean() > 0.05


def test_a_batch_has_the_shifts_of_its_single_requests(tmp_path: Path):
    setup = tiny_setup(tmp_path)
    pictured, plain = setup.rows(PROMPTS, "blank.png"), setup.rows(PROMPTS, None)
    together = RequestShift(setup.model, setup.family, LAYERS, setup.blank)(pictured, plain)
    for row in range(len(PROMPTS)):
        alone = RequestShift(setup.model, setup.family, LAYERS, setup.blank)([pictured[row]], [plain[row]])
        torch.testing.assert_close(alone[:, 0], together[:, row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_the_mean_in_batches_of_any_size(differences: Tensor, size: int):
    found = dataset_shift(iter(in_batches(differences, size)))
    expected = differences.numpy().astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(found.shift.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert found.count == 50 and found.shift.dtype == torch.float32
    rows = differences.numpy().astype(np.float64)
    cosines = (
        np.einsum("lnw,lw->ln", rows, expected)
        / np.linalg.norm(rows, axis=2)
        / np.linalg.norm(expected, axis=1)[:, None]
    )
    np.testing.assert_allclose(found.agreement.numpy(), cosines.mean(axis=1), rtol=1e-5)


def reference_component(differences: Tensor) -> np.ndarray:
    """NumPy's singular value decomposition of all differences of each layer."""
    rows = differences.numpy().astype(np.float64)
    found = []
    for layer in rows:
        first = np.linalg.svd(layer, full_matrices=False)[2][0]
        found.append((first @ layer.mean(axis=0)) * first)
    return np.stack(found)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_the_first_component_is_that_of_the_whole_set(differences: Tensor, size: int):
    found = dataset_shift(iter(in_batches(differences, size)), direction="first_pc").shift.numpy()
    np.testing.assert_allclose(found, reference_component(differences), rtol=1e-5, atol=1e-6)
    mean = differences.mean(dim=1).numpy()
    assert all(ours @ theirs > 0 for ours, theirs in zip(found, mean, strict=True))
    assert not np.allclose(found, mean, atol=1e-3)


def test_the_sketch_of_many_anchors_in_many_directions_stays_close():
    """More anchors and more width than the sketch has rows: what it drops is noise."""
    generator = torch.Generator().manual_seed(2)
    many = torch.randn(1, 400, 200, generator=generator) * 0.5 + torch.randn(1, 1, 200, generator=generator)
    found = dataset_shift(iter(in_batches(many, 16)), direction="first_pc").shift.numpy()
    expected = reference_component(many)
    assert many.shape[1] > SKETCH_ROWS < many.shape[2]
    cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.9999


def test_nothing_to_take_a_shift_from():
    with pytest.raises(UserError, match=r"no anchor.*steering.anchors=FILE"):
        dataset_shift(iter([]))
    with pytest.raises(UserError, match="Unknown direction.*median.*first_pc"):
        dataset_shift(iter([]), direction="median")


def test_the_request_shift_of_a_batch_of_one_dtype(setup_half: Setup):
    """In bfloat16 the difference is taken in float32."""
    rows, plain = setup_half.rows(PROMPTS[:2], "blank.png"), setup_half.rows(PROMPTS[:2], None)
    found = RequestShift(setup_half.model, setup_half.family, LAYERS, setup_half.blank)(rows, plain)
    assert found.dtype == torch.float32 and not torch.equal(found, found.bfloat16().float())


@pytest.fixture
def setup_half(tmp_path: Path) -> Setup:
    setup = tiny_setup(tmp_path)
    setup.model.to(torch.bfloat16)
    return setup
