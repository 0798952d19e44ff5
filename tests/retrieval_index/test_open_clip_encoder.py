"""The open_clip encoder against open_clip itself, called in the plainest way."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from retrieval_index.encoders import EncoderSpec, load_encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.open_clip_encoder import OpenClipEncoder, _revision
from tests.tiny_clip import random_captions, write_pictures, write_tiny_clip


def plain_text(name: str, captions: list[str]) -> np.ndarray:
    """`encode_text` on the full context, one batch, as open_clip's README does it."""
    model, _ = open_clip.create_model_from_pretrained(name)
    with torch.inference_mode():
        return model.eval().encode_text(open_clip.get_tokenizer(name)(captions), normalize=True).numpy()


@pytest.mark.parametrize(
    ("custom_text", "causal", "trims"),
    [(False, True, True), (True, True, True), (True, False, False), (False, False, False)],
)
def test_texts_equal_the_untrimmed_ones(tmp_path: Path, custom_text: bool, causal: bool, trims: bool) -> None:
    name = write_tiny_clip(tmp_path / "clip", custom_text=custom_text, causal=causal)
    encoder = OpenClipEncoder(name, None)
    captions = [*random_captions(60), "dog", " ".join(["a red car"] * 20)]  # the last one overflows the context
    assert encoder.trims is trims
    np.testing.assert_allclose(encoder.encode_texts(captions, batch_size=16), plain_text(name, captions), atol=2e-6)


def test_a_batch_is_cut_to_its_longest_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = OpenClipEncoder(write_tiny_clip(tmp_path / "clip"), None)
    shapes = []
    encode_text = encoder._model.encode_text
    monkeypatch.setattr(
        encoder._model, "encode_text", lambda tokens: shapes.append(tuple(tokens.shape)) or encode_text(tokens)
    )
    encoder.encode_texts(["a dog and a cat", "dog", "a red car", "cat"], batch_size=2)
    assert shapes == [(2, 3), (2, 7)]  # <s> words </s>, sorted by length


def test_longer_batches_after_shorter_ones_are_not_affected(tmp_path: Path) -> None:
    encoder = OpenClipEncoder(write_tiny_clip(tmp_path / "clip"), None)
    first = encoder.encode_texts(["a dog sits on a chair"], batch_size=1)
    encoder.encode_texts(["dog"], batch_size=1)
    np.testing.assert_array_equal(encoder.encode_texts(["a dog sits on a chair"], batch_size=1), first)


def test_images_equal_open_clips_own(tmp_path: Path) -> None:
    name = write_tiny_clip(tmp_path / "clip")
    pictures = write_pictures(tmp_path / "pictures", 5, size=40)
    model, preprocess = open_clip.create_model_from_pretrained(name)
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.open(path)) for path in pictures])
        expected = model.eval().encode_image(pixels, normalize=True).numpy()
    found = OpenClipEncoder(name, None).encode_images(pictures, batch_size=2)
    assert found.shape == (5, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_progress_is_reported(tmp_path: Path) -> None:
    encoder = OpenClipEncoder(write_tiny_clip(tmp_path / "clip"), None)
    done: list[int] = []
    encoder.encode_texts(random_captions(5), batch_size=2, report=done.append)
    encoder.encode_images(write_pictures(tmp_path / "p", 3), batch_size=2, report=done.append)
    assert done == [2, 4, 5, 2, 3]


def test_half_precision_stays_close(tmp_path: Path) -> None:
    name = write_tiny_clip(tmp_path / "clip")
    captions = random_captions(20)
    half = load_encoder(EncoderSpec("open_clip", name), device="cpu", precision="bf16")
    full = OpenClipEncoder(name, None).encode_texts(captions, batch_size=8)
    cosines = (half.encode_texts(captions, batch_size=8) * full).sum(axis=1)
    assert 0.99 < cosines.min() < cosines.max() <= 1.0001


def test_loading_logs_nothing_and_leaves_logging_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    OpenClipEncoder(write_tiny_clip(tmp_path / "clip"), None)
    assert caplog.messages == []
    logging.info("heard")
    assert caplog.messages == ["heard"]


def test_no_captions_give_no_rows(tmp_path: Path) -> None:
    assert OpenClipEncoder(write_tiny_clip(tmp_path / "clip"), None).encode_texts([], batch_size=2).shape == (0, 16)


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    encoder = OpenClipEncoder(write_tiny_clip(tmp_path / "clip"), None)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(RetrievalError, match="cannot be decoded. Given: .*broken.png"):
        encoder.encode_images([tmp_path / "broken.png"], batch_size=1)
    with pytest.raises(RetrievalError, match="does not exist. Given: .*none.png"):
        encoder.encode_images([tmp_path / "none.png"], batch_size=1)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    name = write_tiny_clip(tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_config.json"
    document = json.loads(file.read_text())
    del document["model_cfg"]["text_cfg"]["hf_tokenizer_name"]  # open_clip then falls back to CLIP's 49,408 tokens
    file.write_text(json.dumps(document))
    with pytest.raises(
        RetrievalError, match="does not belong to the text tower. Given: .* 49407 for a vocabulary of 3"
    ):
        OpenClipEncoder(name, None)


@pytest.mark.parametrize(
    ("name", "tag", "quick"),
    [
        ("ViT-L-14", "openai", True),
        ("ViT-B-32", "laion400m_e32", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32", "weights.pt", False),
        ("ViT-B-32", None, False),
    ],
)
def test_weights_get_the_activation_they_were_trained_with(
    name: str, tag: str | None, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def create(*arguments: object, **options: object) -> None:
        asked.update(options)
        raise RuntimeError("no hub here")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    with pytest.raises(RetrievalError, match="no hub here"):
        OpenClipEncoder(name, tag)
    assert asked["force_quick_gelu"] is quick


def test_the_revision_is_the_commit_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, commit = (
        tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K",
        "1a25a446712ba5ee05982a381eed697ef9b435cf",
    )
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "open_clip_model.safetensors").write_bytes(b"")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert _revision("ViT-B-32", "laion2b_s34b_b79k") == commit
    assert _revision("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None) == commit
    assert _revision("ViT-B-32", "openai") is None  # not in this cache
    assert _revision("ViT-B-32", "weights.pt") is None and _revision("local-dir:x", None) is None


def test_a_model_that_cannot_be_loaded_is_one_message(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RetrievalError, match="Given: name=ViT-B-32 pretrained=nowhere. Allowed: .*laion2b_s34b_b79k"):
        OpenClipEncoder("ViT-B-32", "nowhere")
    assert caplog.records == []
