"""A data-dependent start for the projector, folded into the weights it has anyway.

CLIP patch features share one large mean and a few dominant directions; a random projector passes these on and little
else. Here the features are whitened (ZCA: centred, decorrelated, scaled to unit variance, and rotated back), and the
whitening is multiplied into the first linear layer: `W (Z (x - mean)) + b = (W Z) x + (b - W Z mean)`. The last layer
is scaled so that image tokens are as large as word embeddings, times a ratio. Class, shapes and names stay the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tga.errors import UserError
from tga.vlm.families import Family, component
from tga.vlm.image_tokens import projector_inputs


@torch.no_grad()
def calibrate_projector(
    model: nn.Module, family: Family, pixel_values: Tensor, *, eps: float, output_std_ratio: float
) -> None:
    """Fold a whitening of the vision features into the projector and set the scale of its output, in place.

    Args:
        pixel_values: `[images, 3, height, width]` of some training pictures; a few hundred give a stable covariance.
        eps: share of the mean eigenvalue that is added to every eigenvalue before whitening, > 0.
        output_std_ratio: standard deviation of the projector's output over that of the input embeddings, > 0.

    Raises:
        UserError: eps or ratio not positive, a first layer without bias, or a family whose projector is not fresh.
    """
    if family.tokens_vary or family.question_tokenizer is not None:
        problem, remedy = "The start of this family's projector cannot be calibrated", "model.calibration=null"
        raise UserError(problem, given=family.name, allowed="llava", remedy=remedy)
    for name, value in (("eps", eps), ("output_std_ratio", output_std_ratio)):
        if not value > 0:
            remedy = f"model.calibration.{name}=VALUE, or model.calibration=null"
            raise UserError(
                f"{name} of the projector's start must be positive", given=value, allowed="> 0", remedy=remedy
            )
    projector = component(model, family.projector)
    first, last = (component(projector, name) for name in (family.projector_layers[0], family.projector_layers[-1]))
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    if first.bias is None:
        raise UserError(
            "Whitening needs a bias in the projector's first layer",
            given="multimodal_projector_bias=false",
            allowed="multimodal_projector_bias=true",
            remedy="model.calibration=null leaves the random start",
        )
    features = torch.cat([projector_inputs(model, family, part) for part in pixel_values.split(64)])
    _fold_whitening(first, features.flatten(0, 1), eps)
    output = projector(features.to(first.weight.dtype)).double()
    embeddings = component(model, family.embed_tokens).weight
    assert isinstance(embeddings, Tensor)
    factor = float(output_std_ratio * embeddings.double().std() / output.std())
    last.weight.mul_(factor)
    if last.bias is not None:
        last.bias.mul_(factor)


def whitening(features: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """ZCA whitening of features.

    Args:
        features: `[tokens, width]`.
        eps: share of the mean eigenvalue added to each eigenvalue.

    Returns:
        mean `[width]` and symmetric matrix `[width, width]`, float64: `(x - mean) @ matrix` is white.
    """
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    covariance = centred.T @ centred / features.shape[0]
    values, vectors = torch.linalg.eigh(covariance)
    scale = (values.clamp(min=0) + eps * values.mean()).rsqrt()
    return mean, vectors @ torch.diag(scale) @ vectors.T


def _fold_whitening(linear: nn.Linear, features: Tensor, eps: float) -> None:
    mean, matrix = whitening(features, eps)
    weight = linear.weight.double() @ matrix
    linear.bias.copy_(linear.bias.double() - weight @ mean)
    linear.weight.copy_(weight)
