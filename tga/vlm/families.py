"""Model families, described by data: where in a vision-language model its parts are, and what its forward wants.

A family is a frozen record of dotted attribute paths and names, not a subclass. Everything else in tga asks the family
for a component and never spells out a path of a model itself.

| family | models | projector |
|---|---|---|
| llava | LLaVA-1.5, ShareGPT4V (LLaVA's classes with a vision tower of its own) | two linear layers |
| llava_next | LLaVA-NeXT (1.6): crops of the picture | two linear layers |
| qwen2_5_vl | Qwen2.5-VL: pictures in their own aspect, positions in three dimensions | the merger |
| idefics3 | Idefics3, SmolVLM: crops of the picture | the connector |
| instructblip | InstructBLIP, the shape of MiniGPT-4: a frozen Q-Former before the projector | one linear layer |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tga.errors import UserError


@dataclass(frozen=True)
class Family:
    """Where the parts of one family of vision-language models are, and how pictures reach it.

    All paths are dotted attribute paths from the model that generates.

    Attributes:
        model_types, processors: `model_type` of the configs, class names of the processors.
        vision_tower, projector: may lie within each other (a merger at the end of the tower).
        language_model: the decoder without its head.
        image_token_id: the name of an attribute of the config.
        projector_layers: the projector's linear layers, first to last, relative to it; "" is the projector itself.
        tokens_vary: how many image tokens a picture becomes depends on its size.
        tokens_attribute: attribute of the processor that says how many, where it does not put them into the text.
        picture_ends: special tokens that stand around a picture's tokens in the prompt.
        token_types: argument of forward that marks the image tokens by 1, `[batch, tokens]`.
        question_tokenizer: attribute of the processor: the tokenizer of a Q-Former, which reads the prompt.
        rope_deltas: attribute, below the model, of what the model adds to the positions of generated tokens after a
            prompt with pictures `[batch, 1]`; such a model finds the positions of a prompt itself.
    """

    name: str
    model_types: tuple[str, ...]
    processors: tuple[str, ...]
    vision_tower: str
    projector: str
    language_model: str
    decoder_layers: str
    embed_tokens: str
    final_norm: str
    lm_head: str
    image_token_id: str
    projector_layers: tuple[str, ...]
    tokens_vary: bool = False
    tokens_attribute: str | None = None
    picture_ends: tuple[str, str] = ("", "")
    token_types: str | None = None
    question_tokenizer: str | None = None
    rope_deltas: str | None = None


LLAVA = Family(
    name="llava",
    model_types=("llava",),
    processors=("LlavaProcessor",),
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
LLAVA_NEXT = replace(
    LLAVA, name="llava_next", model_types=("llava_next",), processors=("LlavaNextProcessor",), tokens_vary=True
)
QWEN2_5_VL = replace(
    LLAVA,
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    processors=("Qwen2_5_VLProcessor",),
    vision_tower="model.visual",
    projector="model.visual.merger",
    projector_layers=("mlp.0", "mlp.2"),
    tokens_vary=True,
    picture_ends=("<|vision_start|>", "<|vision_end|>"),
    token_types="mm_token_type_ids",
    rope_deltas="model.rope_deltas",
)
IDEFICS3 = Family(
    name="idefics3",
    model_types=("idefics3", "smolvlm"),
    processors=("Idefics3Processor", "SmolVLMProcessor"),
    vision_tower="model.vision_model",
    projector="model.connector",
    language_model="model.text_model",
    decoder_layers="model.text_model.layers",
    embed_tokens="model.text_model.embed_tokens",
    final_norm="model.text_model.norm",
    lm_head="lm_head",
    image_token_id="image_token_id",
    projector_layers=("modality_projection.proj",),
    tokens_vary=True,
)
INSTRUCTBLIP = Family(
    name="instructblip",
    model_types=("instructblip",),
    processors=("InstructBlipProcessor",),
    vision_tower="vision_model",
    projector="language_projection",
    language_model="language_model.model",
    decoder_layers="language_model.model.layers",
    embed_tokens="language_model.model.embed_tokens",
    final_norm="language_model.model.norm",
    lm_head="language_model.lm_head",
    image_token_id="image_token_id",
    projector_layers=("",),
    tokens_attribute="num_query_tokens",
    question_tokenizer="qformer_tokenizer",
)

FAMILIES: tuple[Family, ...] = (LLAVA, LLAVA_NEXT, QWEN2_5_VL, IDEFICS3, INSTRUCTBLIP)
MODEL_TYPES = tuple(model_type for family in FAMILIES for model_type in family.model_types)


def family_of(model: nn.Module) -> Family:
    """The family of a loaded model, by the `model_type` of its config.

    Raises:
        UserError: the model has no config, or its type belongs to no supported family.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return family_of_type(model_type, given=f"{type(model).__name__} with model_type {model_type!r}")


def family_of_type(model_type: str | None, *, given: str) -> Family:
    """The family of a `model_type`; `given` says where it was found.

    Raises:
        UserError: it belongs to no supported family.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise UserError(
        "This kind of model is not supported",
        given=given,
        allowed="model_type " + ", ".join(map(repr, MODEL_TYPES)),
        remedy="use a model of one of these types in the Hugging Face layout, or assemble one from an LLM and a vision "
        "tower (model=llava_parts)",
    )


def family_of_processor(processor: Any) -> Family:
    """The family whose processor this is, by the name of its class.

    Raises:
        UserError: it belongs to no supported family.
    """
    names = {base.__name__ for base in type(processor).__mro__}
    for family in FAMILIES:
        if names & set(family.processors):
            return family
    raise UserError(
        "This kind of processor is not supported",
        given=type(processor).__name__,
        allowed=", ".join(name for family in FAMILIES for name in family.processors),
        remedy="model.vlm=PATH of a directory with its own processor_config.json",
    )


def component(model: nn.Module, path: str) -> nn.Module:
    """The sub-module of `model` at a dotted path of its family; "" is `model` itself.

    Raises:
        UserError: there is no module at that path.
    """
    found: Any = model
    for name in path.split(".") if path else ():
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
