"""A model without its weights: laid out on the meta device from configs alone, with its real processor.

It knows its family, its depth, its widths and how many parameters each part has, so what a config asks of it can be
checked in a second, before gigabytes are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration, PreTrainedModel

from tga.errors import UserError
from tga.vlm.families import component, family_of
from tga.vlm.parts import (
    SET_TOWER,
    add_image_token,
    check_decoder,
    llava_config,
    llava_processor,
    load_config,
    load_image_processor,
    load_processor,
    load_tokenizer,
    load_vision_config,
)
from tga.vlm.pretrained import pretrained, without_own_code

SET_LLM = "model.llm=PATH"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")


def outline_llava(
    llm: str,
    vision_tower: str,
    *,
    vision_feature_layer: int = -2,
    vision_feature_select_strategy: str = "default",
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, Any]:
    """What `tga.vlm.assemble.assemble_llava` would join: a model on the meta device, and its processor.

    Raises:
        UserError: a part that does not exist, is of the wrong kind, or lacks files of weights.
    """
    text, vision = pretrained(AutoConfig, llm, remedy=SET_LLM), load_vision_config(vision_tower)
    tokenizer = load_tokenizer(llm)
    add_image_token(tokenizer)
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    config = llava_config(text, vision, tokenizer, vision_feature_layer, vision_feature_select_strategy)
    processor = llava_processor(tokenizer, load_image_processor(vision_tower), vision, vision_feature_select_strategy)
    require_weights(llm, remedy=SET_LLM)
    require_weights(vision_tower, remedy=SET_TOWER)
    with torch.device("meta"), without_own_code(llm, remedy=SET_LLM):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    check_decoder(component(model, family_of(model).language_model), llm)
    return model.eval(), processor


def check_llm(llm: str) -> None:
    """Raise a UserError for a language model that does not exist, or lacks files, whatever the other parts are."""
    pretrained(AutoConfig, llm, remedy=SET_LLM)
    load_tokenizer(llm)
    require_weights(llm, remedy=SET_LLM)


def check_vision_tower(vision_tower: str) -> None:
    """Raise a UserError for a vision tower that does not exist, or lacks files, whatever the other parts are."""
    load_vision_config(vision_tower)
    load_image_processor(vision_tower)
    require_weights(vision_tower, remedy=SET_TOWER)


def outline_vlm(path: str, *, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Any]:
    """What `tga.vlm.assemble.load_vlm` would load: a model on the meta device, and its processor.

    Raises:
        UserError: there is no model, it is of no supported family, or it lacks files of weights.
    """
    remedy = "model.vlm=PATH"
    config, processor = load_config(path, remedy=remedy), load_processor(path, remedy=remedy)
    require_weights(path, remedy=remedy)
    with torch.device("meta"), without_own_code(path, remedy=remedy):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, trust_remote_code=False)
    return model.eval(), processor


def require_weights(path: str, *, remedy: str) -> None:
    """Raise a UserError where a local directory lacks files of weights that it should hold; hub ids pass."""
    directory = Path(path)
    if not directory.is_dir():
        return
    for name in INDEXES:
        if (directory / name).is_file():
            listed = set(json.loads((directory / name).read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(file for file in listed if not (directory / file).is_file())
            break
    else:
        missing = [] if any((directory / name).is_file() for name in WHOLE) else [WHOLE[0]]
    if missing:
        raise UserError(
            f"{len(missing)} files of weights are missing",
            given=f"{directory}: {', '.join(missing[:5])}",
            allowed=f"{WHOLE[0]}, or all files that {INDEXES[0]} lists",
            remedy=f"complete the download, or {remedy}",
        )
