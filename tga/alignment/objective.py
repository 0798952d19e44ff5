"""What an alignment objective is: pooled spans and the step's progress in, named scalar losses out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class PooledSpans:
    """Hidden states of a batch, averaged over the tokens of each span, at some layers.

    Attributes:
        layers: the layer numbers, in the order of the first dimension below; 0 = input embeddings.
        image: `[layers, batch, width]` float32, I_l, with gradient.
        caption: `[layers, batch, width]`, C_l, a target without gradient.
        retrieved: `[layers, batch, width]`, R_l, or None where no text was retrieved for the whole batch.
        has_pair: `[batch]` bool, the sample has both an image and a caption.
        has_retrieved: `[batch]` bool, the sample has retrieved text.
    """

    layers: tuple[int, ...]
    image: Tensor
    caption: Tensor
    retrieved: Tensor | None
    has_pair: Tensor
    has_retrieved: Tensor

    def select(self, layers: tuple[int, ...]) -> PooledSpans:
        """The same spans at `layers` only, in that order; KeyError on a layer that was not pooled."""
        if layers == self.layers:
            return self
        place = {layer: i for i, layer in enumerate(self.layers)}
        missing = [layer for layer in layers if layer not in place]
        if missing:
            raise KeyError(f"layers {missing} were not pooled; pooled: {self.layers}")
        index = torch.tensor([place[layer] for layer in layers], device=self.image.device)
        return PooledSpans(
            layers=layers,
            image=self.image[index],
            caption=self.caption[index],
            retrieved=None if self.retrieved is None else self.retrieved[index],
            has_pair=self.has_pair,
            has_retrieved=self.has_retrieved,
        )


class Objective(Protocol):
    """One training objective beside the LM loss."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layer numbers whose pooled spans it needs."""
        ...

    def losses(self, spans: PooledSpans, progress: float) -> dict[str, Tensor]:
        """Named scalars, already weighted and scheduled: their sum is added to the LM loss.

        Each is a mean over the samples that have the spans it needs, and an exact zero connected to the graph when
        no sample has.

        Args:
            spans: pooled spans at a superset of `layers`.
            progress: step / total steps, in 0..1.
        """
        ...


def mean_present(values: Tensor, present: Tensor) -> Tensor:
    """Mean of `values` `[batch]` over the samples in `present` `[batch]` bool; a connected zero when there is none."""
    kept = torch.where(present, values, torch.zeros((), dtype=values.dtype, device=values.device))
    return kept.sum() / present.sum().clamp(min=1)
