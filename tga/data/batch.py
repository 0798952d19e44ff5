"""What one training step takes: `Batch`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FILLER = ""  # the id of a row that is no sample


@dataclass
class Batch:
    """What one training step takes. The batch has `P` pictures, in the order of its samples.

    Attributes:
        ids: the samples' ids; FILLER where a row is no sample.
        input_ids, attention_mask, labels: `[batch, tokens]` int64; labels are -100 where ignored.
        pixel_values: float32, in the layout of the family (LLaVA-1.5: `[P, 3, height, width]`), None without pictures;
            or stored features `[P, image tokens, vision width]` (`tga.training.stored_features`).
        picture_inputs: what else the model's forward takes because of the pictures, by argument.
        image_mask, retrieved_mask: `[batch, tokens]` bool; the latter is False throughout where no text is in the
            prompt.
        caption_ids, caption_attention_mask: `[batch, caption tokens]` int64; caption_mask: bool, without padding and
            BOS.
        retrieved_ids, retrieved_attention_mask, retrieved_text_mask: the same of the retrieved text, None unless it
            is fed to the language model alone.
        caption_states, retrieved_states: `[layers, batch, width]` float32, their stored pooled states, None where the
            language model is to compute them.
    """

    ids: list[str]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixel_values: Tensor | None
    image_mask: Tensor
    retrieved_mask: Tensor
    caption_ids: Tensor
    caption_attention_mask: Tensor
    caption_mask: Tensor
    retrieved_ids: Tensor | None = None
    retrieved_attention_mask: Tensor | None = None
    retrieved_text_mask: Tensor | None = None
    picture_inputs: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    caption_states: Tensor | None = None
    retrieved_states: Tensor | None = None

    def model_inputs(self) -> dict[str, Tensor]:
        """What the model's forward takes, by argument."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.pixel_values is not None:
            inputs |= {"pixel_values": self.pixel_values, **self.picture_inputs}
        return inputs

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which copies to a GPU do not wait."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> Batch:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["picture_inputs"] = {name: function(tensor) for name, tensor in self.picture_inputs.items()}
        return Batch(**{k: function(v) if isinstance(v, Tensor) else v for k, v in values.items()})
