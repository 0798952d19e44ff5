"""Tiny random models, tokenizers and data for tests: real classes, milliseconds to build, always the same values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ["<s>", "</s>", "<pad>", "<unk>", "<image>"]
SENTENCES = [
    "A small red car stands beside a green tree.",
    "USER: What is in the picture? ASSISTANT: There is a dog and a ball in the picture.",
    "I am sorry, but I cannot help with that request.",
    "How many cats sit on the blue chair? Two cats sit on it.",
    "Describe the image. A cup of tea on a wooden table.",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}ASSISTANT: "
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 320 entries that encodes any text, with `<image>` and a chat template."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def tiny_llm(layers: int = 3, width: int = 32) -> LlamaForCausalLM:
    """A random Llama for `tiny_tokenizer`: `layers` decoder layers of `width`, two heads, float32, eager attention."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.2,
        attn_implementation="eager",
        dtype="float32",
    )
    return LlamaForCausalLM(config).eval()


def tiny_clip_vision(image: int = 28, patch: int = 14) -> CLIPVisionModel:
    """A random CLIP vision tower: two layers of width 24, `(image / patch) ** 2` patches, float32, eager attention."""
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image,
        patch_size=patch,
        initializer_range=0.2,
        initializer_factor=2.0,
        attn_implementation="eager",
        dtype="float32",
    )
    return CLIPVisionModel(config).eval()


def tiny_image_processor(image: int = 28) -> CLIPImageProcessor:
    """CLIP preprocessing to `image` x `image` pixels."""
    return CLIPImageProcessor(size={"shortest_edge": image}, crop_size={"height": image, "width": image})


def tiny_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A random LLaVA of the tiny parts, 4 image tokens per picture, with its processor."""
    tokenizer = tiny_tokenizer()
    llm, vision = tiny_llm(), tiny_clip_vision()
    torch.manual_seed(2)
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=llm.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=4,
        attn_implementation="eager",
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.lm_head.load_state_dict(llm.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(vision.state_dict())
    for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        torch.nn.init.normal_(layer.weight, std=0.2)
    processor = LlavaProcessor(
        image_processor=tiny_image_processor(),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return model, processor


def write_tiny_parts(directory: str | Path) -> tuple[Path, Path]:
    """Save an LLM with its tokenizer, and a vision tower with its image processor, as Hugging Face directories."""
    llm_dir, vision_dir = Path(directory) / "llm", Path(directory) / "vision_tower"
    tiny_llm().save_pretrained(llm_dir)
    tiny_tokenizer().save_pretrained(llm_dir)
    tiny_clip_vision().save_pretrained(vision_dir)
    tiny_image_processor().save_pretrained(vision_dir)
    return llm_dir, vision_dir


def tiny_picture(seed: int = 0, size: int = 40) -> Image.Image:
    """A seeded RGB picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_tiny_llava_json(directory: str | Path, n: int = 8) -> tuple[Path, Path]:
    """Write `n` image-caption records in LLaVA's JSON layout with their pictures; returns (json, image root)."""
    root = Path(directory)
    images = root / "images"
    images.mkdir(parents=True, exist_ok=True)
    colours, things = ["red", "green", "blue"], ["car", "tree", "dog", "ball", "cup"]
    records = []
    for i in range(n):
        tiny_picture(i).save(images / f"{i:04d}.png")
        caption = f"A {colours[i % len(colours)]} {things[i % len(things)]} beside {i + 2} chairs."
        question = "<image>\nDescribe the image." if i % 2 == 0 else "Describe the image.\n<image>"
        records.append(
            {
                "id": f"{i:04d}",
                "image": f"{i:04d}.png",
                "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": caption}],
            }
        )
    path = root / "train.json"
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return path, images
