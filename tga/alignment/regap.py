"""ReGap: a regulariser on the modality gap at the language model's input (Yang et al. 2025, arXiv 2505.24208).

Not the inference-time method of the same name from 2026 (arXiv 2605.18104). The paper finds that the distance between
image tokens and text tokens at the LLM's first layer goes with unsafe answers, and trains the projector with

    L = L_LM + alpha * gap

in the projector's stage alone. Per sample, with V `[n_v, width]` the projector's output and T `[n_t, width]` the
input embeddings of the caption:

    mean_to_mean:  ||mean(V) - mean(T)||_2
    pairwise:      mean over i, j of ||v_i - t_j||_2

or the squares of these norms. Pairing and squaring are not known to us from the paper, hence both are options, with
"pairwise", not squared, by default. alpha comes out of a warm-up and is fixed from then on:

    alpha = ratio * EMA(L_LM) / EMA(gap)

During the warm-up the weight is 0, which is our choice: alpha is then a property of plain training and not of its own
effect, and from the end of the warm-up the run minimises one and the same function.

Making V small is a way to a small gap that aligns nothing. The ratio of norms log(||V|| / ||T||) is logged beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from tga.alignment.objective import Spans, TokenSpans, figure, mean_present
from tga.errors import UserError

PAIRINGS = ("pairwise", "mean_to_mean")
INPUT_LAYER = 0


class ReGap:
    """The term `alpha * gap`, see the module.

    Args:
        pairing: "pairwise" or "mean_to_mean".
        squared: the squared norm instead of the norm.
        ratio: what alpha makes of the LM loss: at the end of the warm-up, alpha * gap = ratio * L_LM.
        warmup: share of the run's steps over which the two means are taken, in [0, 1); the first step always counts.
        decay: of the exponential moving averages, in [0, 1).
        weight: alpha itself, which leaves out the warm-up; None for the rule above.
        force: let it run while the language model trains, which the paper advises against.

    Raises:
        UserError: an unknown pairing, or a number out of its range.
    """

    layers: tuple[int, ...] = ()
    token_layers: tuple[int, ...] = (INPUT_LAYER,)
    figure_names: tuple[str, ...] = ("regap_alpha", "regap_gap", "regap_log_norm_ratio")

    def __init__(
        self,
        *,
        pairing: str = "pairwise",
        squared: bool = False,
        ratio: float = 1.0,
        warmup: float = 0.03,
        decay: float = 0.98,
        weight: float | None = None,
        force: bool = False,
    ) -> None:
        if pairing not in PAIRINGS:
            allowed = ", ".join(PAIRINGS)
            raise UserError(
                "Unknown pairing of ReGap", given=pairing, allowed=allowed, remedy="alignment.regap.pairing=..."
            )
        ranges = {
            f"ratio={ratio}": ratio > 0,
            f"warmup={warmup}": 0 <= warmup < 1,
            f"decay={decay}": 0 <= decay < 1,
            f"weight={weight}": weight is None or weight >= 0,
        }
        if wrong := [given for given, right in ranges.items() if not right]:
            allowed = "ratio above 0, warmup and decay in [0, 1), weight null or at least 0"
            raise UserError(
                "Settings of ReGap out of range", given=wrong, allowed=allowed, remedy="alignment.regap=..."
            )
        self.pairing, self.squared, self.ratio, self.warmup, self.decay = pairing, squared, ratio, warmup, decay
        self.frozen_language_model_only = not force
        self._fixed = weight
        self._alpha: float | None = None
        self._lm_mean, self._gap_mean = 0.0, 0.0  # moving sums from zero; their ratio needs no correction for that

    @property
    def alpha(self) -> float:
        """The weight of the gap in the loss at present: 0 during the warm-up."""
        if self._fixed is not None:
            return self._fixed
        return self._alpha if self._alpha is not None else 0.0

    def losses(self, spans: Spans, progress: float) -> dict[str, Tensor]:
        """The weighted gap, "regap", a mean over the samples with a picture and a caption."""
        gaps = self._gaps(spans.tokens[INPUT_LAYER])
        return {"regap": self.alpha * mean_present(gaps, spans.has_pair)}

    @torch.no_grad()
    def figures(self, spans: Spans) -> dict[str, Tensor]:
        """`regap_alpha`, and the step's `regap_gap` (unweighted) and `regap_log_norm_ratio`."""
        tokens = spans.tokens[INPUT_LAYER]
        return {
            "regap_alpha": torch.tensor(self.alpha),
            "regap_gap": figure(self._gaps(tokens), spans.has_pair),
            "regap_log_norm_ratio": figure(log_norm_ratios(tokens), spans.has_pair),
        }

    @torch.no_grad()
    def observe(self, lm_loss: Tensor | None, spans: Spans, progress: float) -> None:
        """During the warm-up, move the averages; at its end, fix alpha. A batch without a pair changes nothing.

        Raises:
            UserError: alpha is to be computed, and there is no LM loss.
        """
        if self._fixed is not None or self._alpha is not None:
            return
        if progress >= self.warmup and self._gap_mean > 0:
            self._alpha = self.ratio * self._lm_mean / self._gap_mean
            return
        if lm_loss is None:
            raise UserError(
                "ReGap takes its weight from the LM loss, and this run has none",
                given="training.lm_weight=0",
                remedy="alignment.regap.weight=NUMBER, or training.lm_weight=1",
            )
        gap = mean_present(self._gaps(spans.tokens[INPUT_LAYER]), spans.has_pair)
        lm, gap_now, share = _over_processes(torch.stack([lm_loss.to(gap), gap]), spans.has_pair.any())
        if share:
            self._lm_mean = self.decay * self._lm_mean + (1 - self.decay) * lm
            self._gap_mean = self.decay * self._gap_mean + (1 - self.decay) * gap_now

    def state_dict(self) -> dict[str, Any]:
        """The averages and alpha; `alpha` is None until it is fixed."""
        return {"alpha": self._alpha, "lm_mean": self._lm_mean, "gap_mean": self._gap_mean, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue; UserError where the averages are those of another pairing or of a squared gap."""
        given = {key: state.get(key) for key in self._identity()}
        if given != self._identity():
            raise UserError(
                "The checkpoint was trained with another gap",
                given=given,
                allowed=str(self._identity()),
                remedy="alignment.regap.pairing=... alignment.regap.squared=... as in the run to continue",
            )
        self._alpha, self._lm_mean, self._gap_mean = state["alpha"], state["lm_mean"], state["gap_mean"]

    def _identity(self) -> dict[str, Any]:
        return {"pairing": self.pairing, "squared": self.squared}

    def _gaps(self, tokens: TokenSpans) -> Tensor:
        if self.pairing == "mean_to_mean":
            return mean_to_mean(tokens, squared=self.squared)
        return pairwise(tokens, squared=self.squared)


def mean_to_mean(tokens: TokenSpans, *, squared: bool) -> Tensor:
    """Distance of the two spans' means, `[batch]`, or its square. Rows without tokens give numbers without meaning."""
    difference = _mean(tokens.image, tokens.image_mask) - _mean(tokens.caption, tokens.caption_mask)
    squares = difference.square().sum(dim=-1)
    return squares if squared else _root(squares)


def pairwise(tokens: TokenSpans, *, squared: bool) -> Tensor:
    """Mean distance over all pairs of an image token and a caption token, `[batch]`, or of the squared distances.

    The distances take memory of `[batch, image tokens, caption tokens]`, never times the width. Squared, they need
    no pairs at all: with c = mean(t), mean ||v - t||^2 = mean ||v - c||^2 + mean ||t - c||^2.
    """
    # Both ways lose digits where vectors are long beside their distance, so all are moved to the captions' mean first.
    origin = _mean(tokens.caption, tokens.caption_mask).unsqueeze(1)
    image, caption = tokens.image - origin, tokens.caption - origin
    if squared:  # of the captions' deviations from their mean the mean is zero, and so is the product of means
        squares = [
            (states.square().sum(dim=-1) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            for states, mask in ((image, tokens.image_mask), (caption, tokens.caption_mask))
        ]
        return squares[0] + squares[1]
    # By matrix product: the other mode of cdist keeps all differences for its backward pass on a GPU.
    distances = torch.cdist(image, caption, compute_mode="use_mm_for_euclid_dist")
    both = tokens.image_mask.unsqueeze(2) & tokens.caption_mask.unsqueeze(1)
    kept = torch.where(both, distances, torch.zeros((), dtype=distances.dtype, device=distances.device))
    return kept.sum(dim=(1, 2)) / both.sum(dim=(1, 2)).clamp(min=1)


def log_norm_ratios(tokens: TokenSpans) -> Tensor:
    """log(mean ||v|| / mean ||t||) over the tokens of each sample, `[batch]`, natural logarithm; 0 for empty rows."""
    norms = [
        _mean(torch.linalg.vector_norm(states, dim=-1, keepdim=True), mask).squeeze(-1)
        for states, mask in ((tokens.image, tokens.image_mask), (tokens.caption, tokens.caption_mask))
    ]
    smallest = math.sqrt(torch.finfo(norms[0].dtype).tiny)
    return norms[0].clamp(min=smallest).log() - norms[1].clamp(min=smallest).log()


def _over_processes(values: Tensor, counts: Tensor) -> tuple[float, ...]:
    """Means of `values` over the processes of a distributed run whose `counts` is true, and how many those are.

    One alpha for all processes: with different ones they would not train the same function.
    """
    weighted = torch.cat([torch.where(counts, values, torch.zeros_like(values)), counts.to(values).reshape(1)]).double()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(weighted)
    *sums, share = weighted.tolist()
    return (*(total / max(1.0, share) for total in sums), share)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of packed states `[batch, tokens, width]`, whose padding is zero."""
    return states.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _root(squares: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero instead of infinite."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, torch.ones_like(squares)).sqrt(), squares)
