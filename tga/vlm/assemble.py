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
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tga.errors import UserError
from tga.vlm.families import MODEL_TYPES
from tga.vlm.pretrained import pretrained

IMAGE_TOKEN = "<image>"
CLIP_TYPES = ("clip", "clip_vision_model")
IMAGE_BACKEND = "torchvision"


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
    _check_features(vision, vision_feature_layer, vision_feature_select_strategy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _add_image_token(language_model, tokenizer)
        image_tokens = (vision.config.image_size // vision.config.patch_size) ** 2
        config = LlavaConfig(
            vision_config=vision.config,
            text_config=language_model.config,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            image_seq_length=image_tokens + (vision_feature_select_strategy == "full"),
            tie_word_embeddings=bool(language_model.config.tie_word_embeddings),
        )
        model = _join(config, language_model, vision, dtype, attn_implementation)
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision.config.patch_size,
        vision_feature_select_strategy=vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=tokenizer.chat_template,
    )
    return model, processor


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
    config = pretrained(AutoConfig, path, remedy=remedy)
    if config.model_type not in MODEL_TYPES:
        raise UserError(
            "Not a vision-language model of a supported family in the Hugging Face layout",
            given=f"{path} with model_type {config.model_type!r}",
            allowed="model_type " + ", ".join(map(repr, MODEL_TYPES)),
            remedy=remedy,
        )
    loaded, report = pretrained(
        AutoModelForImageTextToText,
        path,
        remedy=remedy,
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    _check_complete(path, report)
    processor = pretrained(AutoProcessor, path, remedy=remedy, backend=IMAGE_BACKEND)
    processor.tokenizer.chat_template = processor.chat_template or processor.tokenizer.chat_template
    _ensure_padding(processor.tokenizer)
    return loaded.eval(), processor


def load_llm(
    path: str, dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model alone, in eval mode, with its tokenizer, which gets a padding token if it has none.

    Raises:
        UserError: it does not exist, lacks weights, or is not laid out like Llama.
    """
    model, report = pretrained(
        AutoModelForCausalLM,
        path,
        remedy="model.llm=PATH",
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    _check_complete(path, report)
    missing = [name for name in ("embed_tokens", "layers", "norm") if not hasattr(model.base_model, name)]
    if missing:
        raise UserError(
            f"The decoder of this language model is not laid out like Llama's: it lacks {', '.join(missing)}",
            given=f"{path} ({type(model).__name__})",
            allowed="Llama, Mistral, Qwen2 and their like",
            remedy="model.llm=PATH",
        )
    tokenizer = pretrained(AutoTokenizer, path, remedy="model.llm=PATH")
    _ensure_padding(tokenizer)
    return model, tokenizer


def _ensure_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def _load_vision_tower(path: str, dtype: torch.dtype, attn_implementation: str) -> tuple[CLIPVisionModel, Any]:
    config = pretrained(AutoConfig, path, remedy="model.vision_tower=PATH")
    if config.model_type not in CLIP_TYPES:
        raise UserError(
            "Not a CLIP vision tower",
            given=f"{path} with model_type {config.model_type!r}",
            allowed=", ".join(CLIP_TYPES),
            remedy="model.vision_tower=openai/clip-vit-large-patch14-336",
        )
    model, report = pretrained(
        CLIPVisionModel,
        path,
        remedy="model.vision_tower=PATH",
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    _check_complete(path, report)
    return model, pretrained(AutoImageProcessor, path, remedy="model.vision_tower=PATH", backend=IMAGE_BACKEND)


def _check_features(vision: CLIPVisionModel, layer: int, strategy: str) -> None:
    if strategy not in ("default", "full"):
        raise UserError(
            "Unknown vision_feature_select_strategy",
            given=strategy,
            allowed="default, full",
            remedy="model.vision_feature_select_strategy=default",
        )
    depth = vision.config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise UserError(
            "vision_feature_layer outside the vision tower",
            given=layer,
            allowed=f"{-depth - 1} to {depth}",
            remedy="model.vision_feature_layer=-2",
        )


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


def _add_image_token(language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    rows = language_model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        language_model.resize_token_embeddings(len(tokenizer))


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
