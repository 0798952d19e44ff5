"""A tiny random model of each family's real class with its real processor, built here: no file, no network.

All share the tiny tokenizer (grown by the family's own special tokens), decoders of three layers of width 32, and
towers of width 24. The processors are the real classes at small sizes: LLaVA-NeXT and Idefics3 cut a picture into
crops, Qwen2.5-VL keeps its aspect, InstructBLIP feeds the question to its Q-Former.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, processors
from torch import nn
from transformers import (
    BlipImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests.tiny import tiny_llava, tiny_picture, tiny_tokenizer

WIDTH, VISION_WIDTH, LAYERS = 32, 24, 3
# The chat templates of the real models, shortened: contents are lists, and a picture is a part of its own.
IDEFICS3_CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ ' ' + part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_NEXT_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    " [/INST]{% else %}{{ ' ' }}{% generation %}{{ message['content'][0]['text'] }}{{ eos_token }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
)


def tiny_llava_next() -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """LLaVA-NeXT: crops of 28 pixels on grids of up to 2 x 2, 4 patches each, line ends, padding removed."""
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    tokenizer = tiny_tokenizer()
    config = LlavaNextConfig(
        vision_config=_clip_config(),
        text_config=_llama_config(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=4,
    )
    crop = {"height": 28, "width": 28}
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size=crop, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_NEXT_CHAT,
    )
    return _random(LlavaNextForConditionalGeneration, config), processor


def tiny_sharegpt4v() -> tuple[Any, Any]:
    """ShareGPT4V: LLaVA's classes with a vision tower that is no longer the CLIP it started from."""
    model, processor = tiny_llava()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.model.vision_tower.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model, processor


def tiny_qwen2_5_vl() -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Qwen2.5-VL: pictures of 2 x 2 to 4 x 4 tokens by size and aspect, positions in three dimensions."""
    vision_tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _grown("<|im_start|>", "<|im_end|>", *vision_tokens, start=False)
    tokenizer.eos_token = "<|im_end|>"
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    vision = {
        "depth": 2, "hidden_size": VISION_WIDTH, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1], "window_size": 28, "initializer_range": 0.2,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=QWEN_CHAT,
    )
    return _random(Qwen2_5_VLForConditionalGeneration, config), processor


def tiny_idefics3() -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Idefics3: crops of 28 pixels and the whole picture, each of 4 patches merged to 1 token, with row and column."""
    config, processor = _idefics3(Idefics3Config)
    return _random(Idefics3ForConditionalGeneration, config), processor


def tiny_smolvlm() -> tuple[SmolVLMForConditionalGeneration, Idefics3Processor]:
    """SmolVLM2's model class, with Idefics3's processor: its own differs in video alone and needs num2words."""
    config, processor = _idefics3(SmolVLMConfig)
    return _random(SmolVLMForConditionalGeneration, config), processor


def tiny_instructblip() -> tuple[InstructBlipForConditionalGeneration, InstructBlipProcessor]:
    """InstructBLIP: a Q-Former of 5 queries that reads the question, and a linear projector."""
    tokenizer, qformer_tokenizer = _grown(), _grown()
    config = InstructBlipConfig(
        vision_config={
            "hidden_size": VISION_WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14, "initializer_range": 0.2,
        },
        qformer_config={
            "vocab_size": len(qformer_tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 2,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
        text_config=_llama_config(tokenizer).to_dict(),
        num_query_tokens=5,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.2,
    )  # fmt: skip
    processor = InstructBlipProcessor(
        BlipImageProcessor(size={"height": 28, "width": 28}), tokenizer, qformer_tokenizer, num_query_tokens=5
    )
    model = _random(InstructBlipForConditionalGeneration, config)
    with torch.no_grad():
        model.query_tokens.normal_(generator=torch.Generator().manual_seed(3))
    return model, processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": tiny_llava,
    "llava_next": tiny_llava_next,
    "sharegpt4v": tiny_sharegpt4v,
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "idefics3": tiny_idefics3,
    "smolvlm": tiny_smolvlm,
    "instructblip": tiny_instructblip,
}


# The prompt format that suits each; the others take vicuna_v1.
TEMPLATE = dict.fromkeys(FAMILIES, "vicuna_v1") | {
    "qwen2_5_vl": "tokenizer", "instructblip": "instructblip", "llava_next": "mistral_instruct",
}  # fmt: skip
SIZES = {"wide": (90, 30), "square": (40, 40)}


@functools.cache
def made(name: str) -> tuple[Any, Any]:
    """One family's model and processor, the same objects on each call; the chat template is the processor's."""
    model, processor = FAMILIES[name]()
    processor.tokenizer.chat_template = processor.chat_template or processor.tokenizer.chat_template
    return model, processor


def write_pictures(directory: Path) -> dict[str, Path]:
    """A wide and a square picture; families that mind the size give them different numbers of tokens."""
    for number, (name, size) in enumerate(SIZES.items()):
        tiny_picture(number).resize(size).save(directory / f"{name}.png")
    return {name: directory / f"{name}.png" for name in SIZES}


def _grown(*special: str, start: bool = True) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with further special tokens; which one stands for a picture is the processor's business.

    start: texts begin with `<s>`.
    """
    backend = tiny_tokenizer().backend_tokenizer
    if not start:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if start else None,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in special], special_tokens=True)
    return tokenizer


def _idefics3(config_class: type) -> tuple[Any, Idefics3Processor]:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = _grown("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>", *places)
    config = config_class(
        vision_config={
            "hidden_size": VISION_WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14, "initializer_range": 0.2,
        },
        text_config=_llama_config(tokenizer).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )  # fmt: skip
    images = Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    return config, Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=IDEFICS3_CHAT)


def _llama_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.2,
    )


def _clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        initializer_range=0.2,
        initializer_factor=2.0,
    )


def _random(model_class: Any, config: Any) -> Any:
    """A float32 model in eval mode whose linear layers differ enough for answers to differ."""
    torch.manual_seed(2)
    model = model_class._from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for module in _linear_layers(model):
            module.weight.normal_(std=0.2)
    return model


def _linear_layers(model: nn.Module) -> Iterator[nn.Linear]:
    yield from (module for module in model.modules() if isinstance(module, nn.Linear))
