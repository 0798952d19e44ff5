"""How far the states of image tokens and of text tokens lie apart at one layer: measures, not objectives.

With V `[n_v, width]` and T `[n_t, width]` the tokens of many pairs thrown together, in float64:

    FID = ||mu_V - mu_T||^2 + Tr(S_V + S_T - 2 (S_V S_T)^(1/2))        of V' = w(a V), T' = w(a T)
    MIR = log10 of the sum of FID over the decoder layers 1..L         (Huang et al. 2024, arXiv 2410.07167)
    a   = 1 / mean_j ||t_j||, which makes the text's mean norm 1;  S: covariances (divisor n - 1)
    w   replaces states whose norm is further than three standard deviations from the median norm by the median state

as the authors' public code has it (medians are the lower ones, by coordinate). Beside it, of V and T as they are:

    l2 = ||mu_V - mu_T||_2,    cosine = 1 - cos(mu_V, mu_T),    log_norm_ratio = log(mean ||v|| / mean ||t||)

Nothing depends on the order of the tokens.

The public code's default, "fast", takes the root of A = S_V S_T by five Newton steps in float32:

    Y <- (Y + Z^-1 A) / 2,   Z <- (Z + Y^-1 A) / 2,   from Y = A, Z = 1

That start is a fixed point (Z^-1 A = A, Y^-1 A = 1): in exact arithmetic the "root" is A itself, and whatever else
comes out is rounding error. We offer it, in float32 as there, to compare with published figures and for nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tga.errors import UserError

ROOTS = ("accurate", "fast")
NEWTON_STEPS = 5


@dataclass(frozen=True)
class LayerGap:
    """The measures of one layer; see the module."""

    fid: float
    l2: float
    cosine: float
    log_norm_ratio: float


@torch.no_grad()
def layer_gap(vision: Tensor, text: Tensor, *, root: str = "accurate") -> LayerGap:
    """All measures of one layer.

    Args:
        vision: `[image tokens, width]`, any floating dtype; text: `[text tokens, width]`. At least two tokens each.
        root: "accurate", or "fast" for a comparison with figures of the public code's default.

    Raises:
        UserError: an unknown root, too few tokens, or a fast root that does not exist.
    """
    if root not in ROOTS:
        raise UserError("Unknown matrix root of the modality gap", given=root, allowed=", ".join(ROOTS), remedy=SET)
    if min(len(vision), len(text)) < 2:
        given = f"{len(vision)} image tokens, {len(text)} text tokens"
        raise UserError("The modality gap needs at least two tokens of each kind", given=given, remedy="pairs: 100")
    vision, text = vision.double(), text.double()
    means = vision.mean(dim=0), text.mean(dim=0)
    norms = _norms(vision).mean(), _norms(text).mean()
    sides = (vision, text) if root == "accurate" else (vision.float(), text.float())
    unit = 1.0 / _norms(sides[1]).mean()
    sides = replace_outliers(unit * sides[0]), replace_outliers(unit * sides[1])
    difference = means[0] - means[1]
    cosine = means[0] @ means[1] / (means[0].norm() * means[1].norm()).clamp(min=torch.finfo(torch.float64).tiny)
    return LayerGap(
        fid=frechet_distance(sides[0], sides[1], root=root),
        l2=difference.norm().item(),
        cosine=1.0 - cosine.item(),
        log_norm_ratio=(norms[0] / norms[1]).log().item(),
    )


def modality_integration_rate(distances: Sequence[float]) -> float:
    """MIR of the Fréchet distances of the decoder layers 1..L."""
    return math.log10(sum(distances))


def replace_outliers(states: Tensor) -> Tensor:
    """States `[tokens, width]`, those of far too large or small a norm replaced by the median state; see the module."""
    norms = _norms(states)
    far = (norms - norms.median()).abs() > 3 * norms.std()
    return torch.where(far.unsqueeze(1), states.median(dim=0).values, states)


def frechet_distance(a: Tensor, b: Tensor, *, root: str = "accurate") -> float:
    """Squared Fréchet distance of the normal distributions with the samples' means and covariances.

    The trace of the accurate root is the sum of the singular values of S_a^(1/2) S_b^(1/2): no root of a matrix that
    is not symmetric is taken, and none of rounding errors.

    Args:
        a, b: `[samples, width]` of one dtype, each of its own number of samples.
        root: as in :func:`layer_gap`.
    """
    covariances = _covariance(a), _covariance(b)
    if root == "accurate":
        trace = torch.linalg.svdvals(_root(covariances[0]) @ _root(covariances[1])).sum()
    else:
        trace = _newton_root(covariances[0] @ covariances[1]).trace()
    distance = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(distance + covariances[0].trace() + covariances[1].trace() - 2 * trace)


def _norms(states: Tensor) -> Tensor:
    return torch.linalg.vector_norm(states, dim=1)


def _covariance(samples: Tensor) -> Tensor:
    centred = samples - samples.mean(dim=0)
    return centred.T @ centred / (len(samples) - 1)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root; eigenvalues that are zero but for rounding count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    smallest = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return (vectors * torch.where(values > smallest, values, 0.0).sqrt()) @ vectors.T


def _newton_root(matrix: Tensor) -> Tensor:
    """The public code's "root", which is the matrix itself but for rounding errors; see the module."""
    y, z = matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    try:
        for _ in range(NEWTON_STEPS):
            y = (y + torch.linalg.inv(z) @ matrix) / 2
            z = (z + torch.linalg.inv(y) @ matrix) / 2
    except torch.linalg.LinAlgError as error:
        raise UserError(
            "The fast root does not exist for these states: fewer tokens than dimensions", remedy="root: accurate"
        ) from error
    return y


SET = "evaluation.metrics.NAME={file: PATH, kind: modality_gap, root: accurate}"
