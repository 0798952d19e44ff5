"""The language model of a VLM by itself: which one it is, and a language model without a VLM around it.

What concerns text alone needs no vision tower. `LANGUAGE_MODEL` describes a causal language model in the terms of a
family, so that everything that asks a family for decoder layers, norm and head works on it too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from tga.vlm.families import LLAVA, Family, component, num_layers
from tga.vlm.fingerprint import weights_fingerprint

# A Llama-like `...ForCausalLM`; the paths of pictures lead nowhere, and asking for them is an error that says so.
LANGUAGE_MODEL: Family = replace(
    LLAVA,
    name="language_model",
    model_types=(),
    processors=(),
    vision_tower="vision_tower",
    projector="projector",
    language_model="model",
    decoder_layers="model.layers",
    embed_tokens="model.embed_tokens",
    final_norm="model.norm",
    lm_head="lm_head",
)


@dataclass(frozen=True)
class LanguageModelId:
    """Which language model: its depth, the width of its states, and a fingerprint of its decoder's weights."""

    num_layers: int
    width: int
    fingerprint: str


def identify_language_model(model: nn.Module, family: Family) -> LanguageModelId:
    """The language model inside `model`, by its decoder layers and final norm.

    The same alone, in a VLM around it, in any dtype and with tokens added to its vocabulary.
    """
    layers, norm = component(model, family.decoder_layers), component(model, family.final_norm)
    weight = component(model, family.embed_tokens).weight
    assert isinstance(weight, Tensor)
    fingerprint = weights_fingerprint({"layers": layers, "norm": norm})
    return LanguageModelId(num_layers(model, family), weight.shape[1], fingerprint)
