"""What an alignment objective is: spans of hidden states and the step's progress in, named scalar losses out.

An objective declares what it needs: means over spans at its `layers`, states of single tokens at its `token_layers`.
One that carries something from step to step is a `StatefulObjective`; its state is part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSpans:
    """Hidden states of the single tokens of two spans at one layer, packed to the left of their rows.

    Attributes:
        image: `[batch, image tokens, width]` at least float32, with gradient; zeros behind the last token of a row.
        image_mask: `[batch, image tokens]` bool, True where there is a token.
        caption: `[batch, caption tokens, width]`, a target without gradient.
        caption_mask: `[batch, caption tokens]` bool.
    """

    image: Tensor
    image_mask: Tensor
    caption: Tensor
    caption_mask: Tensor


@dataclass(frozen=True)
class Spans:
    """Hidden states of a batch at some layers: averaged over the tokens of each span, and token by token.

    Attributes:
        layers: the layer numbers, in the order of the first dimension below; 0 = input embeddings.
        image: `[layers, batch, width]` float32, I_l, with gradient.
        caption: `[layers, batch, width]`, C_l, a target without gradient.
        retrieved: `[layers, batch, width]`, R_l, or None where no text was retrieved for the whole batch.
        has_pair: `[batch]` bool, the sample has both an image and a caption.
        has_retrieved: `[batch]` bool, the sample has both an image and a retrieved text.
        caption_group, retrieved_group: `[batch]` int64, equal numbers for samples with the very same text; None where
            every text differs from the others.
        tokens: layer number -> the states of single tokens.
    """

    layers: tuple[int, ...]
    image: Tensor
    caption: Tensor
    retrieved: Tensor | None
    has_pair: Tensor
    has_retrieved: Tensor
    caption_group: Tensor | None = None
    retrieved_group: Tensor | None = None
    tokens: Mapping[int, TokenSpans] = field(default_factory=dict)

    def select(self, layers: tuple[int, ...]) -> Spans:
        """The same spans with the means at `layers` only, in that order; KeyError on a layer that was not pooled."""
        if layers == self.layers:
            return self
        place = {layer: i for i, layer in enumerate(self.layers)}
        missing = [layer for layer in layers if layer not in place]
        if missing:
            raise KeyError(f"layers {missing} were not pooled; pooled: {self.layers}")
        index = torch.tensor([place[layer] for layer in layers], device=self.image.device, dtype=torch.long)
        return Spans(
            layers=layers,
            image=self.image[index],
            caption=self.caption[index],
            retrieved=None if self.retrieved is None else self.retrieved[index],
            has_pair=self.has_pair,
            has_retrieved=self.has_retrieved,
            caption_group=self.caption_group,
            retrieved_group=self.retrieved_group,
            tokens=self.tokens,
        )


class Objective(Protocol):
    """One training objective beside the LM loss."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layer numbers whose pooled spans it needs."""
        ...

    @property
    def token_layers(self) -> tuple[int, ...]:
        """Layer numbers whose token states it needs."""
        ...

    @property
    def frozen_language_model_only(self) -> bool:
        """Whether it must not run while the language model trains."""
        ...

    @property
    def figure_names(self) -> tuple[str, ...]:
        """The keys of `figures`."""
        ...

    def losses(self, spans: Spans, progress: float) -> dict[str, Tensor]:
        """Named scalars, already weighted and scheduled: their sum is added to the LM loss.

        Each is a mean over the samples that have the spans it needs, and an exact zero connected to the graph when
        no sample has.

        Args:
            spans: spans at a superset of `layers` and `token_layers`.
            progress: step / total steps, in 0..1.
        """
        ...

    def figures(self, spans: Spans) -> dict[str, Tensor]:
        """Named scalars to be logged beside the losses, unweighted and detached; NaN where no sample has the spans."""
        ...


@runtime_checkable
class StatefulObjective(Objective, Protocol):
    """An objective whose losses depend on what the run has seen so far."""

    def observe(self, lm_loss: Tensor | None, spans: Spans, progress: float) -> None:
        """Take in a training step, before its losses are asked for.

        Args:
            lm_loss: the step's LM loss, scalar, unweighted and detached; None where the run has no LM loss.
            spans: as in `losses`.
            progress: as in `losses`.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which `load_state_dict` continues exactly."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave; UserError where that belongs to something else."""
        ...


def pooled_layers(objectives: Iterable[Objective]) -> tuple[int, ...]:
    """The layers at which any of the objectives needs pooled spans, in rising order."""
    return tuple(sorted({layer for objective in objectives for layer in objective.layers}))


def mean_present(values: Tensor, present: Tensor) -> Tensor:
    """Mean of `values` `[batch]` over the samples in `present` `[batch]` bool; a connected zero when there is none."""
    kept = torch.where(present, values, torch.zeros((), dtype=values.dtype, device=values.device))
    return kept.sum() / present.sum().clamp(min=1)


def figure(values: Tensor, present: Tensor) -> Tensor:
    """As `mean_present`, detached, and NaN when there is no sample: a figure that nothing was measured for."""
    mean = mean_present(values.detach(), present)
    return torch.where(present.any(), mean, torch.full_like(mean, float("nan")))
