"""Calibration: white pre-activations through the old weights, the output scale asked for, nothing else changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.tiny import tiny_llava
from tga.errors import UserError
from tga.vlm.families import family_of
from tga.vlm.image_tokens import projector_inputs
from tga.vlm.projector_init import calibrate_projector, whitening


def _pixels(images: int = 60) -> torch.Tensor:
    return torch.randn(images, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def test_features_are_what_the_model_projects() -> None:
    model, _ = tiny_llava()
    features = projector_inputs(model, family_of(model), _pixels(2))
    expected = model.model.vision_tower(_pixels(2), output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(features, expected, rtol=0, atol=0)


def test_whitening_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + 3.0
    mean, matrix = whitening(torch.from_numpy(x), eps=0.1)
    covariance = np.cov(x.T, bias=True)
    regularised = covariance + 0.1 * np.trace(covariance) / 4 * np.eye(4)
    np.testing.assert_allclose(mean.numpy(), x.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(matrix.numpy() @ regularised @ matrix.numpy(), np.eye(4), atol=1e-9)


def test_first_layer_sees_white_features_and_output_has_the_scale_asked_for() -> None:
    model, _ = tiny_llava()
    family = family_of(model)
    before = copy.deepcopy(model.model.multi_modal_projector)
    names = list(model.state_dict())
    calibrate_projector(model, family, _pixels(), eps=0.1, output_std_ratio=3.0)
    assert list(model.state_dict()) == names
    projector = model.model.multi_modal_projector
    features = projector_inputs(model, family, _pixels()).flatten(0, 1)
    mean, matrix = whitening(features, 0.1)
    white = ((features.double() - mean) @ matrix).float()
    with torch.no_grad():
        torch.testing.assert_close(projector.linear_1(features), before.linear_1(white), rtol=1e-3, atol=1e-3)
        ratio = projector(features).std() / model.get_input_embeddings().weight.std()
        unscaled = before(white)
    torch.testing.assert_close(ratio, torch.tensor(3.0), rtol=1e-3, atol=0)
    factor = projector.linear_2.weight / before.linear_2.weight
    torch.testing.assert_close(factor, factor[0, 0].expand_as(factor), rtol=1e-4, atol=0)
    torch.testing.assert_close(projector(features), unscaled * factor[0, 0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("eps", "ratio"), [(0.0, 3.0), (0.1, -1.0)])
def test_values_that_make_no_sense_are_refused(eps: float, ratio: float) -> None:
    model, _ = tiny_llava()
    with pytest.raises(UserError, match="must be positive"):
        calibrate_projector(model, family_of(model), _pixels(4), eps=eps, output_std_ratio=ratio)
