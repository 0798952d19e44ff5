"""Text-guided alignment (Xu et al., ICLR 2025, arXiv 2410.12662): the guide loss.

Per sample and layer l, with I_l the mean state of the image tokens, C_l that of the caption fed to the language model
alone, R_l that of the retrieved text:

    pair = -cos(I_l, C_l)                                   (form "log"; "exp": exp(-cos(I_l, C_l)))
    rank = log(1 + exp(cos(R_l, C_l) - cos(I_l, C_l)))      (form "log"; "exp": exp(cos(R_l, C_l) - cos(I_l, C_l)))

The image is drawn to its caption, and closer to it than the retrieved text is. Form "log" is the paper's formula as
two independent readers give it; form "exp" is what the released code (commit 2e1be15) writes. There the exponential
leaves the graph and nothing trains; here it is differentiable. With `centre`, the same per-layer vector is subtracted
from I, C and R before every cosine; that is our option, not the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tga.alignment.objective import PooledSpans, mean_present
from tga.alignment.schedules import schedule_named
from tga.errors import UserError

REDUCTIONS = ("sum", "mean")
FORMS = ("log", "exp")
RELEASED_LAYERS = tuple(range(10, 19))


@dataclass(frozen=True, eq=False)
class TGA:
    """The guide loss `pair_weight * s_pair(t) * pair + rank_weight * s_rank(t) * rank`.

    Attributes:
        layers: layer numbers, 0 = input embeddings.
        pair_weight, rank_weight: weights of the two terms.
        reduction: "sum" or "mean" over the layers; samples are always averaged.
        form: "log" or "exp", see the module.
        pair_schedule, rank_schedule: names in tga.alignment.schedules.
        centre: `[layers, width]`, in the order of `layers`, or None for the raw cosine.
        retrieved_gradient: let the ranking term's gradient flow into R_l as well.

    Raises:
        UserError: an unknown reduction, form or schedule, or no layer.
    """

    layers: tuple[int, ...]
    pair_weight: float = 1.0
    rank_weight: float = 1.0
    reduction: str = "mean"
    form: str = "log"
    pair_schedule: str = "constant"
    rank_schedule: str = "constant"
    centre: Tensor | None = None
    retrieved_gradient: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise UserError("TGA needs at least one layer", given="[]", remedy="alignment.layers=[0,1,2]")
        _one_of("reduction", self.reduction, REDUCTIONS)
        _one_of("form", self.form, FORMS)
        schedule_named(self.pair_schedule)
        schedule_named(self.rank_schedule)
        if self.centre is not None and (self.centre.dim() != 2 or self.centre.shape[0] != len(self.layers)):
            raise ValueError(f"centre must be [{len(self.layers)}, width], not {list(self.centre.shape)}")

    def losses(self, spans: PooledSpans, progress: float) -> dict[str, Tensor]:
        """The two weighted terms, "tga_pair" and "tga_rank"; see tga.alignment.objective.Objective.

        The ranking term is the mean over samples that have image, caption and retrieved text.
        """
        spans = spans.select(self.layers)
        image, caption = self._centred(spans.image), self._centred(spans.caption.detach())
        image_caption = cosine(image, caption)
        pair = -image_caption if self.form == "log" else torch.exp(-image_caption)
        pair_factor = self.pair_weight * schedule_named(self.pair_schedule)(progress)
        rank_factor = self.rank_weight * schedule_named(self.rank_schedule)(progress)
        losses = {"tga_pair": pair_factor * mean_present(self._over_layers(pair), spans.has_pair)}
        if spans.retrieved is None:
            losses["tga_rank"] = losses["tga_pair"] * 0.0
            return losses
        retrieved = self._centred(spans.retrieved if self.retrieved_gradient else spans.retrieved.detach())
        margin = cosine(retrieved, caption) - image_caption
        rank = functional.softplus(margin) if self.form == "log" else torch.exp(margin)
        present = spans.has_pair & spans.has_retrieved
        losses["tga_rank"] = rank_factor * mean_present(self._over_layers(rank), present)
        return losses

    def _centred(self, pooled: Tensor) -> Tensor:
        pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
        if self.centre is None:
            return pooled
        return pooled - self.centre.to(pooled).unsqueeze(1)

    def _over_layers(self, values: Tensor) -> Tensor:
        return values.sum(dim=0) if self.reduction == "sum" else values.mean(dim=0)


def cosine(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """Cosine over the last dimension; 0, with a finite gradient, where a side is zero. Dtype of the inputs."""
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(dim=-1) / norms.clamp(min=eps)


def paper(num_layers: int) -> TGA:
    """The paper's formula: all decoder layers 1..`num_layers`, summed, weight 1, no schedule."""
    return TGA(tuple(range(1, num_layers + 1)), reduction="sum")


def released(layers: Sequence[int] = RELEASED_LAYERS) -> TGA:
    """What the released code means: layers 10-18 of 32, mean, 0.25 (1-t) and 0.1 (1-t)^2, exponential forms."""
    return TGA(
        tuple(layers),
        pair_weight=0.25,
        rank_weight=0.1,
        reduction="mean",
        form="exp",
        pair_schedule="linear_decay",
        rank_schedule="quadratic_decay",
    )


def located(layers: Sequence[int]) -> TGA:
    """Our default: the paper's terms, averaged over the layers at which safety activates."""
    return TGA(tuple(layers), reduction="mean")


def _one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise UserError(
            f"Unknown {name} of TGA", given=given, allowed=", ".join(allowed), remedy=f"alignment.{name}=..."
        )
