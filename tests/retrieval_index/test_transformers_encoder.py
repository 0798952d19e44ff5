"""The transformers encoder against the models called plainly, on tiny CLIP and SigLIP models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from retrieval_index.encoders import EncoderSpec, load_encoder
from retrieval_index.errors import RetrievalError
from tests.tiny_clip import random_captions, tiny_clip_tokenizer, write_pictures

CONTEXT = 16
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CAPTIONS = [*random_captions(40), "dog", " ".join(["a red car"] * 20)]  # the last one overflows the context


def write_model(directory: Path, family: str) -> str:
    tokenizer = tiny_clip_tokenizer()
    text = LAYERS | {
        "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = LAYERS | {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    if family == "clip":
        model = CLIPModel(
            CLIPConfig(text_config=text | {"projection_dim": 24}, vision_config=vision, projection_dim=24)
        )
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28).save_pretrained(directory)
    else:
        model = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision))
        SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(directory)
    for name, parameter in model.named_parameters():
        if "embedding" in name:  # wide apart, or every random caption would look like every other
            torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_texts_and_pictures_equal_the_models_own(tmp_path: Path, family: str) -> None:
    name = write_model(tmp_path / "model", family)
    encoder = load_encoder(EncoderSpec("transformers", f"local-dir:{name}"), device="cpu")
    model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    inputs = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    with torch.inference_mode():
        texts = model.get_text_features(input_ids=inputs["input_ids"])
        pictures = write_pictures(tmp_path / "p", 5, size=40)
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        images = model.get_image_features(**processor([Image.open(path) for path in pictures], return_tensors="pt"))
    for found, features in (
        (encoder.encode_texts(CAPTIONS, batch_size=8), texts),
        (encoder.encode_images(pictures, batch_size=2), images),
    ):
        expected = torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1).numpy()
        np.testing.assert_allclose(found, expected, atol=3e-6)
    assert encoder.truncated == 1 and encoder.width == (24 if family == "clip" else 32)
    assert encoder.preprocessing["trims"] is (family == "clip")
    assert "Pil" in encoder.preprocessing["picture"]


def test_another_family_and_a_missing_model(tmp_path: Path) -> None:
    BertModel(BertConfig(**LAYERS, vocab_size=9)).save_pretrained(tmp_path / "bert")
    with pytest.raises(RetrievalError, match="family bert. Allowed: clip, siglip, siglip2"):
        load_encoder(EncoderSpec("transformers", str(tmp_path / "bert")), device="cpu")
    with pytest.raises(RetrievalError, match="transformers encoder cannot be loaded"):
        load_encoder(EncoderSpec("transformers", str(tmp_path / "none")), device="cpu")
