"""A LLaVA model from its parts, or a model of any family from one directory.

`assemble_llava` joins a language model and a CLIP vision tower by a fresh projector into a real
`LlavaForConditionalGeneration` with its processor; saved, it loads with plain transformers. No weight is held twice:
the joined model is laid out without storage and takes the modules of its parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tga.errors import UserError
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


def assemble_llava(
    llm: str,
    vision_tower: str,
    *,
    vision_feature_layer: int = -2,
    vision_feature_select_strategy: str = "default",
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    seed: int = 0,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Join an LLM and a CLIP vision tower by a fresh random projector.

    The projector starts as LLaVA's does (PyTorch's default for linear layers). Where the tokenizer lacks `<image>`,
    the token is added and embeddings and head grow by it. The global random state is left as it was.

    Args:
        llm: directory or hub id of a causal language model with its tokenizer.
        vision_tower: directory or hub id of a CLIP vision model (or a whole CLIP) with its image processor.
        vision_feature_layer: index into the tower's hidden states; -2 as in LLaVA-1.5.
        vision_feature_select_strategy: "default" drops the class token, "full" keeps it.
        seed: of the projector and of added embeddings.

    Returns:
        model, in eval mode, and processor.

    Raises:
        UserError: a part that does not exist or is of the wrong kind.
    """
    language_model, tokenizer = load_llm(llm, dtype, attn_implementation)
    vision, image_processor = _load_vision_tower(vision_tower, dtype, attn_implementation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add_image_token(tokenizer)
        if len(tokenizer) > language_model.get_input_embeddings().weight.shape[0]:
            language_model.resize_token_embeddings(len(tokenizer))
        config = llava_config(
            language_model.config, vision.config, tokenizer, vision_feature_layer, vision_feature_select_strategy
        )
        with without_own_code(llm, remedy="model.llm=PATH"):
            model = _join(config, language_model, vision, dtype, attn_implementation)
    return model, llava_processor(tokenizer, image_processor, vision.config, vision_feature_select_strategy)


def load_vlm(
    path: str,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    *,
    remedy: str = "model.vlm=PATH, or model=llava_parts with an LLM and a vision tower",
) -> tuple[PreTrainedModel, Any]:
    """Load a complete model of any supported family (`tga.vlm.families`), in eval mode, with its processor.

    The tokenizer takes over the processor's chat template, which knows the pictures.

    Args:
        path: directory or hub id.
        remedy: what an error tells the caller's user to set.

    Raises:
        UserError: it does not exist, is of no supported family, or lacks weights.
    """
    load_config(path, remedy=remedy)
    loaded, report = pretrained(
        AutoModelForImageTextToText,
        path,
        remedy=remedy,
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    _check_complete(path, report)
    return loaded.eval(), load_processor(path, remedy=remedy)


def load_llm(
    path: str, dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model to build on, in eval mode, with its tokenizer, as `load_causal_lm`.

    Raises:
        UserError: it does not exist, lacks weights, or is not laid out like Llama.
    """
    model, tokenizer = load_causal_lm(path, dtype, attn_implementation, remedy="model.llm=PATH")
    check_decoder(model.base_model, path)
    return model, tokenizer


def load_causal_lm(
    path: str, dtype: torch.dtype, attn_implementation: str | None, *, remedy: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model of any layout, in eval mode; its tokenizer gets a padding token if it has none.

    attn_implementation: None lets the model choose. remedy: what an error tells the caller's user to set.

    Raises:
        UserError: it does not exist or lacks weights.
    """
    model, report = pretrained(
        AutoModelForCausalLM,
        path,
        remedy=remedy,
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    _check_complete(path, report)
    return model, load_tokenizer(path, remedy=remedy)


def _load_vision_tower(path: str, dtype: torch.dtype, attn_implementation: str) -> tuple[CLIPVisionModel, Any]:
    load_vision_config(path)
    model, report = pretrained(
        CLIPVisionModel,
        path,
        remedy=SET_TOWER,
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    _check_complete(path, report)
    return model, load_image_processor(path)


def _check_complete(path: str, report: dict[str, Any]) -> None:
    wrong = {
        name: sorted(map(str, report.get(name) or ())) for name in ("missing_keys", "mismatched_keys", "error_msgs")
    }
    if any(wrong.values()):
        shown = "; ".join(f"{name}: {keys[:5]} ({len(keys)})" for name, keys in wrong.items() if keys)
        raise UserError(
            "Weights that the model needs are not in the files, and would stay random",
            given=f"{path}: {shown}",
            allowed="files that hold every weight, in the shapes of config.json",
            remedy="download or export the model again, complete",
        )


def _join(
    config: LlavaConfig,
    language_model: PreTrainedModel,
    vision: CLIPVisionModel,
    dtype: torch.dtype,
    attn_implementation: str,
) -> LlavaForConditionalGeneration:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    projector = model.model.multi_modal_projector.to_empty(device="cpu")
    for layer in projector.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    model.model.vision_tower = vision
    model.model.language_model = language_model.base_model
    model.lm_head = language_model.get_output_embeddings()
    model.generation_config = language_model.generation_config
    return model.eval()
