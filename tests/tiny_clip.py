"""Tiny random retrievers for tests: an open_clip `local-dir` with its tokenizer, and a sentence-transformers model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP, CustomTextCLIP
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = (
    "a the red blue green big small dog cat car tree house bicycle shop brown sleeps beside in front of on under sits "
    "runs table chair ball two three . , with and picture photo"
).split()
SPECIALS = ["<pad>", "<unk>"]  # <s> and </s> are the last ids: `argmax` pooling looks for the largest


def tiny_clip_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `WORDS`; the end token has the largest id, as CLIP's pooling expects."""
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *WORDS, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def write_tiny_clip(
    directory: Path,
    *,
    seed: int = 0,
    width: int = 16,
    context: int = 24,
    custom_text: bool = False,
    causal: bool = True,
) -> str:
    """Write an open_clip local-dir with random weights; returns its encoder name `local-dir:PATH`."""
    directory.mkdir(parents=True)
    tokenizer = tiny_clip_tokenizer()
    text = {
        "context_length": context, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 2,
        "hf_tokenizer_name": "tiny", "eos_id": tokenizer.eos_token_id, "no_causal_mask": not causal,
        "pool_type": "eos" if custom_text else "argmax",
    }  # fmt: skip
    vision = {"image_size": 28, "patch_size": 14, "width": 32, "layers": 2, "head_width": 16}
    config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (CustomTextCLIP if custom_text else CLIP)(**config)
        for name, parameter in model.named_parameters():
            if "embed" in name:  # wide apart, or every random caption would look like every other
                torch.nn.init.normal_(parameter, std=1.0)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "open_clip_model.safetensors")
    tokenizer.save_pretrained(directory)
    model_config = {**config, "custom_text": True} if custom_text else config
    normalisation = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    document = {"model_cfg": model_config, "preprocess_cfg": normalisation}
    (directory / "open_clip_config.json").write_text(json.dumps(document), encoding="utf-8")
    return f"local-dir:{directory}"


def write_tiny_sentence_model(directory: Path, *, seed: int = 0, width: int = 16) -> str:
    """Write a sentence-transformers directory (tiny BERT, mean pooling, random weights); returns its path."""
    from sentence_transformers import SentenceTransformer

    tokenizer = tiny_clip_tokenizer()
    bert = directory.parent / f"{directory.name}_bert"
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    SentenceTransformer(str(bert), device="cpu").save(str(directory))  # a bare transformer gets mean pooling
    return str(directory)


def random_captions(count: int, *, seed: int = 0) -> list[str]:
    """Distinct captions of 3 to 12 words of `WORDS`."""
    generator = np.random.default_rng(seed)
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[" ".join(generator.choice(WORDS, size=int(generator.integers(3, 13))))] = None
    return list(captions)


def write_pictures(directory: Path, count: int, *, size: int = 28, seed: int = 0) -> list[Path]:
    """Write PNG pictures of random blocks of colour."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        colours = generator.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
        path = directory / f"{index:03d}.png"
        Image.fromarray(colours).resize((size, size), Image.Resampling.NEAREST).save(path)
        paths.append(path)
    return paths
