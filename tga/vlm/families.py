"""Model families, described by data: where in a vision-language model its parts are.

A family is a frozen record of dotted attribute paths, not a subclass. Everything else in tga asks the family for a
component and never spells out a path of a model itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tga.errors import UserError


@dataclass(frozen=True)
class Family:
    """Where the parts of one family of vision-language models are.

    All paths are dotted attribute paths from the model that generates, except `image_token_id`, which is the name of
    an attribute of its config, and `projector_layers`, the first and last linear layer, relative to the projector.
    """

    name: str
    model_types: tuple[str, ...]
    vision_tower: str
    projector: str
    language_model: str
    decoder_layers: str
    embed_tokens: str
    final_norm: str
    lm_head: str
    image_token_id: str
    projector_layers: tuple[str, str]


LLAVA = Family(
    name="llava",
    model_types=("llava",),
    vision_tower="model.vision_tower",
    projector="model.multi_modal_projector",
    language_model="model.language_model",
    decoder_layers="model.language_model.layers",
    embed_tokens="model.language_model.embed_tokens",
    final_norm="model.language_model.norm",
    lm_head="lm_head",
    image_token_id="image_token_id",
    projector_layers=("linear_1", "linear_2"),
)

FAMILIES: tuple[Family, ...] = (LLAVA,)


def family_of(model: nn.Module) -> Family:
    """The family of a loaded model, by the `model_type` of its config.

    Raises:
        UserError: the model has no config, or its type belongs to no supported family.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise UserError(
        "This kind of model is not supported",
        given=f"{type(model).__name__} with model_type {model_type!r}",
        allowed="model_type " + ", ".join(repr(t) for family in FAMILIES for t in family.model_types),
        remedy="use a LLaVA-1.5 model in the Hugging Face layout, or assemble one from an LLM and a vision tower "
        "(model=llava_parts)",
    )


def component(model: nn.Module, path: str) -> nn.Module:
    """The sub-module of `model` at a dotted path of its family.

    Raises:
        UserError: there is no module at that path.
    """
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            break
    if not isinstance(found, nn.Module):
        children = ", ".join(name for name, _ in model.named_children())
        raise UserError(
            f"{type(model).__name__} has no module at {path}",
            given=f"children {children}",
            allowed="the layout of transformers 5 or later",
            remedy="pip install 'transformers>=5'",
        )
    return found


def num_layers(model: nn.Module, family: Family) -> int:
    """Number L of decoder layers; layer numbers run from 0 (input embeddings) to L."""
    layers = component(model, family.decoder_layers)
    assert isinstance(layers, nn.ModuleList)
    return len(layers)


def image_token_id(model: nn.Module, family: Family) -> int:
    """Id of the placeholder token that stands for one image token in `input_ids`."""
    return int(getattr(model.config, family.image_token_id))
