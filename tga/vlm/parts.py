"""What of a model is no weights: configs, tokenizers, processors; read and checked before anything large is loaded."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from tga.errors import UserError
from tga.vlm.families import MODEL_TYPES
from tga.vlm.pretrained import pretrained
from tga.vlm.tokenizer_settings import ensure_padding, set_for_generation

IMAGE_TOKEN = "<image>"
CLIP_TYPES = ("clip", "clip_vision_model")
IMAGE_BACKEND = "torchvision"
SET_TOWER = "model.vision_tower=PATH"
OF_THE_LOGITS = ("logits_scaling", "logit_scale", "final_logit_softcapping")


def llava_config(
    text: PreTrainedConfig, vision: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, layer: int, strategy: str
) -> LlavaConfig:
    """The config of a LLaVA model of these parts; layer and strategy choose the vision features.

    Raises:
        UserError: features that the vision tower does not have.
    """
    _check_features(vision, layer, strategy)
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2 + (strategy == "full"),
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def llava_processor(
    tokenizer: PreTrainedTokenizerBase, image_processor: Any, vision: PreTrainedConfig, strategy: str
) -> LlavaProcessor:
    """The processor of a LLaVA model of these parts; its tokenizer is set for generation."""
    set_for_generation(tokenizer, spelled_out=tokenizer.chat_template is not None)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=tokenizer.chat_template,
    )


def load_config(path: str, *, remedy: str) -> PreTrainedConfig:
    """The config of a complete model.

    Raises:
        UserError: there is none, or it is of no supported family.
    """
    config = pretrained(AutoConfig, path, remedy=remedy)
    if config.model_type not in MODEL_TYPES:
        raise UserError(
            "Not a vision-language model of a supported family in the Hugging Face layout",
            given=f"{path} with model_type {config.model_type!r}",
            allowed="model_type " + ", ".join(map(repr, MODEL_TYPES)),
            remedy=remedy,
        )
    return config


def load_processor(path: str, *, remedy: str) -> Any:
    """The processor of a complete model; its tokenizer takes over the chat template and can pad."""
    processor = pretrained(AutoProcessor, path, remedy=remedy, backend=IMAGE_BACKEND)
    processor.tokenizer.chat_template = processor.chat_template or processor.tokenizer.chat_template
    ensure_padding(processor.tokenizer)
    return processor


def load_tokenizer(path: str, *, remedy: str = "model.llm=PATH") -> PreTrainedTokenizerBase:
    """The tokenizer of a language model; it can pad."""
    tokenizer = pretrained(AutoTokenizer, path, remedy=remedy)
    ensure_padding(tokenizer)
    return tokenizer


def load_vision_config(path: str) -> PreTrainedConfig:
    """The config of a CLIP vision tower, be it alone or in a whole CLIP.

    Raises:
        UserError: there is none, or it is of something else.
    """
    config = pretrained(AutoConfig, path, remedy=SET_TOWER)
    if config.model_type not in CLIP_TYPES:
        raise UserError(
            "Not a CLIP vision tower",
            given=f"{path} with model_type {config.model_type!r}",
            allowed=", ".join(CLIP_TYPES),
            remedy="model.vision_tower=openai/clip-vit-large-patch14-336",
        )
    return config.vision_config if config.model_type == "clip" else config


def load_image_processor(path: str) -> Any:
    """The image processor of a vision tower."""
    return pretrained(AutoImageProcessor, path, remedy=SET_TOWER, backend=IMAGE_BACKEND)


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer know `<image>` as one token."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)


def check_decoder(decoder: nn.Module, path: str) -> None:
    """Raise a UserError where a language model is not laid out as the family wants it.

    That goes for what it does with its logits too: LLaVA's class takes them as the head gives them.
    """
    missing = [name for name in ("embed_tokens", "layers", "norm") if not hasattr(decoder, name)]
    if missing:
        raise UserError(
            f"The decoder of this language model is not laid out like Llama's: it lacks {', '.join(missing)}",
            given=f"{path} ({type(decoder).__name__})",
            allowed="Llama, Mistral, Qwen2 and their like",
            remedy="model.llm=PATH",
        )
    config: Any = decoder.config
    changed = {name: value for name in OF_THE_LOGITS if (value := getattr(config, name, None)) not in (None, 1)}
    if changed:
        raise UserError(
            "This language model scales or caps its logits, and the LLaVA model made of it would not",
            given=f"{path}: " + ", ".join(f"{name} {value}" for name, value in changed.items()),
            allowed="Llama, Mistral, Qwen2 and their like, which do neither",
            remedy="model.llm=PATH",
        )


def _check_features(vision: PreTrainedConfig, layer: int, strategy: str) -> None:
    if strategy not in ("default", "full"):
        raise UserError(
            "Unknown vision_feature_select_strategy",
            given=strategy,
            allowed="default, full",
            remedy="model.vision_feature_select_strategy=default",
        )
    depth = vision.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise UserError(
            "vision_feature_layer outside the vision tower",
            given=layer,
            allowed=f"{-depth - 1} to {depth}",
            remedy="model.vision_feature_layer=-2",
        )
