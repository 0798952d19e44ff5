"""Text-guided alignment (Xu et al., ICLR 2025, arXiv 2410.12662): the guide loss.

Per sample and layer l, with I_l the mean state of the image tokens, C_l that of the caption fed to the language model
alone, R_l that of the retrieved text:

    pair = -cos(I_l, C_l)                                   (form "log"; "exp": exp(-cos(I_l, C_l)))
    rank = log(1 + exp(cos(R_l, C_l) - cos(I_l, C_l)))      (form "log"; "exp": exp(cos(R_l, C_l) - cos(I_l, C_l)))

The image is drawn to its caption, and closer to it than the retrieved text is. Form "log" is the paper's formula as
two independent readers give it; form "exp" is what the released code (commit 2e1be15) writes. There the exponential
leaves the graph and nothing trains; here it is differentiable.

The rest are our options, not the paper's. `centre`: the same per-layer vector is subtracted from I, C and R before
every cosine. Form "contrastive": the image must be nearer to its own text than to those of the batch, at each layer

    pair_i = -log( exp(cos(I_i, C_i) / T) / sum_j exp(cos(I_i, C_j) / T) ),    rank as in form "log"

where j runs over i itself and the samples whose text is not the very same (InfoNCE, van den Oord et al. 2018, from
image to text; T is the temperature). `target`: "retrieved" draws I to R instead of C, and leaves out the ranking term,
which has no meaning then; "both" takes the mean of the two pair terms and keeps the ranking. `warmup`: both terms grow
from nothing over the first steps, in which a fresh projector is far from every text and the guide's gradient many times
that of the LM loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tga.alignment.objective import Spans, figure, mean_present
from tga.alignment.schedules import linear_growth, schedule_named
from tga.errors import UserError

REDUCTIONS = ("sum", "mean")
FORMS = ("log", "exp", "contrastive")
TARGETS = ("caption", "retrieved", "both")
RELEASED_LAYERS = tuple(range(10, 19))
SMALLEST_NORM = 1e-12  # of a state: its square is still a number in float32


@dataclass(frozen=True, eq=False)
class TGA:
    """The guide loss `g(t) * (pair_weight * s_pair(t) * pair + rank_weight * s_rank(t) * rank)`.

    Attributes:
        layers: layer numbers, 0 = input embeddings.
        pair_weight, rank_weight: weights of the two terms.
        reduction: "sum" or "mean" over the layers; samples are always averaged.
        form: "log", "exp" or "contrastive", see the module.
        pair_schedule, rank_schedule: names in tga.alignment.schedules, of s_pair and s_rank.
        warmup: share of the steps over which g grows linearly from 0 to 1; 0: g is 1 throughout.
        target: "caption", "retrieved" or "both", see the module.
        temperature: of form "contrastive", above 0.
        centre: `[layers, width]`, in the order of `layers`, or None for the raw cosine.
        retrieved_gradient: let the ranking term's gradient flow into R_l as well.

    Raises:
        UserError: an unknown reduction, form, target or schedule, a temperature that is not positive, a warm-up outside
            0 to 1, or no layer.
    """

    token_layers: ClassVar[tuple[int, ...]] = ()
    frozen_language_model_only: ClassVar[bool] = False
    figure_names: ClassVar[tuple[str, ...]] = ("tga_cosine", "tga_retrieved_cosine")

    layers: tuple[int, ...]
    pair_weight: float = 1.0
    rank_weight: float = 1.0
    reduction: str = "mean"
    form: str = "log"
    pair_schedule: str = "constant"
    rank_schedule: str = "constant"
    warmup: float = 0.0
    target: str = "caption"
    temperature: float = 0.1
    centre: Tensor | None = None
    retrieved_gradient: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise UserError("TGA needs at least one layer", given="[]", remedy="alignment.layers=[0,1,2]")
        _one_of("reduction", self.reduction, REDUCTIONS)
        _one_of("form", self.form, FORMS)
        _one_of("target", self.target, TARGETS)
        schedule_named(self.pair_schedule)
        schedule_named(self.rank_schedule)
        if not self.temperature > 0:
            remedy = "alignment.temperature=0.1"
            raise UserError("The temperature must be positive", given=self.temperature, allowed="> 0", remedy=remedy)
        if not 0.0 <= self.warmup <= 1.0:
            remedy = "alignment.warmup=0.1"
            raise UserError(
                "The warm-up must be a share of the steps", given=self.warmup, allowed="0 to 1", remedy=remedy
            )
        if self.centre is not None and (self.centre.dim() != 2 or self.centre.shape[0] != len(self.layers)):
            raise ValueError(f"centre must be [{len(self.layers)}, width], not {list(self.centre.shape)}")

    def losses(self, spans: Spans, progress: float) -> dict[str, Tensor]:
        """The two weighted terms, "tga_pair" and "tga_rank"; see tga.alignment.objective.Objective.

        The ranking term is the mean over samples that have image, caption and retrieved text.
        """
        spans = spans.select(self.layers)
        image, caption = self._centred(spans.image), self._centred(spans.caption.detach())
        retrieved = None if spans.retrieved is None else self._centred(spans.retrieved)
        terms = []
        if self.target != "retrieved":
            terms.append(self._pair(image, caption, spans.has_pair, spans.caption_group))
        if self.target != "caption" and retrieved is not None:
            terms.append(self._pair(image, retrieved.detach(), spans.has_retrieved, spans.retrieved_group))
        nothing = image.sum() * 0.0
        pair = torch.stack(terms).mean() if terms else nothing
        rank = nothing
        if self.target != "retrieved" and retrieved is not None:
            margin = cosine(retrieved if self.retrieved_gradient else retrieved.detach(), caption)
            margin = margin - cosine(image, caption)
            shaped = torch.exp(margin) if self.form == "exp" else functional.softplus(margin)
            rank = mean_present(self._over_layers(shaped), spans.has_pair & spans.has_retrieved)
        growth = linear_growth(progress, self.warmup)
        return {
            "tga_pair": growth * self.pair_weight * schedule_named(self.pair_schedule)(progress) * pair,
            "tga_rank": growth * self.rank_weight * schedule_named(self.rank_schedule)(progress) * rank,
        }

    @torch.no_grad()
    def figures(self, spans: Spans) -> dict[str, Tensor]:
        """The cosine of each term, centred where the loss is: means over the layers and the samples that have both.

        `tga_cosine` is cos(I, C), which the pair term raises; `tga_retrieved_cosine` is cos(R, C), which the ranking
        term wants below it.
        """
        spans = spans.select(self.layers)
        caption = self._centred(spans.caption)
        values = cosine(self._centred(spans.image), caption).mean(dim=0)
        found = {"tga_cosine": figure(values, spans.has_pair)}
        if spans.retrieved is None:
            return found | {"tga_retrieved_cosine": torch.full_like(found["tga_cosine"], float("nan"))}
        values = cosine(self._centred(spans.retrieved), caption).mean(dim=0)
        return found | {"tga_retrieved_cosine": figure(values, spans.has_pair & spans.has_retrieved)}

    def _pair(self, image: Tensor, text: Tensor, present: Tensor, group: Tensor | None) -> Tensor:
        """The pair term of one target, a scalar: mean over the samples present."""
        if self.form == "contrastive":
            values = info_nce(image, text, present, group, self.temperature)
        else:
            values = -cosine(image, text)
            values = torch.exp(values) if self.form == "exp" else values
        return mean_present(self._over_layers(values), present)

    def _centred(self, pooled: Tensor) -> Tensor:
        pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
        if self.centre is None:
            return pooled
        return pooled - self.centre.to(pooled).unsqueeze(1)

    def _over_layers(self, values: Tensor) -> Tensor:
        return values.sum(dim=0) if self.reduction == "sum" else values.mean(dim=0)


def info_nce(image: Tensor, text: Tensor, present: Tensor, group: Tensor | None, temperature: float) -> Tensor:
    """-log of the softmax share that each image gives its own text among the texts of the batch, by layer.

    Args:
        image, text: `[layers, batch, width]`.
        present: `[batch]` bool; texts of other samples are no negatives.
        group: `[batch]` int64; texts of equal number are no negatives of each other. None: all differ.
        temperature: what the cosines are divided by.

    Returns:
        `[layers, batch]`, not negative; zero where a sample has no negative. Samples not present have numbers too.
    """
    with torch.autocast(image.device.type, enabled=False):  # it would multiply the matrices in half precision
        shares = _unit(image) @ _unit(text).transpose(1, 2) / temperature
    own = torch.eye(len(present), dtype=torch.bool, device=present.device)
    different = ~own if group is None else group.unsqueeze(0) != group.unsqueeze(1)
    shares = shares.masked_fill(~(own | (different & present.unsqueeze(0))), float("-inf"))
    return torch.logsumexp(shares, dim=2) - shares.diagonal(dim1=1, dim2=2)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last dimension; 0 with a gradient of zero where a side is zero. Dtype of the inputs."""
    return _where_nonzero((a * b).sum(dim=-1), _norms(a) * _norms(b))


def _unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; a zero stays zero and has no gradient."""
    return _where_nonzero(vectors, _norms(vectors).unsqueeze(-1))


def _norms(vectors: Tensor) -> Tensor:
    """Lengths over the last dimension; one too small to divide by counts as zero, so that no gradient overflows."""
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    return torch.where(norms > SMALLEST_NORM, norms, torch.zeros_like(norms))


def _where_nonzero(dividend: Tensor, divisor: Tensor) -> Tensor:
    """`dividend / divisor`, and a constant 0 where the divisor is 0."""
    nonzero = divisor > 0
    quotient = dividend / torch.where(nonzero, divisor, torch.ones_like(divisor))
    return torch.where(nonzero, quotient, torch.zeros_like(quotient))


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
