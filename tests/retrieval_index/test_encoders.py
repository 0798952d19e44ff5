"""Which encoder: kinds, identities and what cannot be loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from retrieval_index.encoders import Encoder, EncoderSpec, golden_embedding, load_encoder
from retrieval_index.errors import RetrievalError
from tests.tiny_clip import write_tiny_clip


def test_identity_of_hub_names() -> None:
    assert EncoderSpec("open_clip", "ViT-B-32", "openai").identity() == "open_clip:ViT-B-32/openai"
    assert EncoderSpec("sentence_transformers", "a/b").identity() == "sentence_transformers:a/b"


def test_identity_of_a_directory_follows_its_content(spec: EncoderSpec, tmp_path: Path) -> None:
    moved = shutil.copytree(spec.name.removeprefix("local-dir:"), tmp_path / "moved")
    assert EncoderSpec("open_clip", f"local-dir:{moved}").identity() == spec.identity()
    other = write_tiny_clip(tmp_path / "other", seed=1)
    assert EncoderSpec("open_clip", other).identity() != spec.identity()


def test_identity_of_a_weight_file_follows_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"weights")
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    first, second = (EncoderSpec("open_clip", "ViT-B-32", str(tmp_path / name)).identity() for name in ("a.pt", "b.pt"))
    assert first == second
    (tmp_path / "b.pt").write_bytes(b"others")
    assert EncoderSpec("open_clip", "ViT-B-32", str(tmp_path / "b.pt")).identity() != first


def test_golden_embedding_tells_checkpoints_apart(encoder: Encoder, tmp_path: Path) -> None:
    other = load_encoder(EncoderSpec("open_clip", write_tiny_clip(tmp_path / "other", seed=1)), device="cpu")
    golden = golden_embedding(encoder)
    assert np.linalg.norm(golden) == pytest.approx(1, abs=1e-6)
    assert abs(golden @ golden_embedding(other)) < 0.9


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EncoderSpec("clip", "x"), "Allowed: open_clip, sentence_transformers"),
        (EncoderSpec("open_clip", ""), "No encoder was named"),
        (EncoderSpec("open_clip", "local-dir:/nowhere/at/all"), "directory does not exist"),
        (EncoderSpec("open_clip", "ViT-B-32", "no_such_tag"), "Allowed: pretrained tags of ViT-B-32: openai, "),
        (EncoderSpec("open_clip", "no-such-model", "openai"), "cannot be loaded"),
        (EncoderSpec("sentence_transformers", "/nowhere/at/all"), "cannot be loaded"),
        (EncoderSpec("sentence_transformers", "x", "openai"), "takes no pretrained tag"),
    ],
)
def test_what_cannot_be_loaded(spec: EncoderSpec, message: str) -> None:
    with pytest.raises(RetrievalError, match=message):
        load_encoder(spec, device="cpu")


def test_unknown_precision(spec: EncoderSpec) -> None:
    with pytest.raises(RetrievalError, match="Given: fp8. Allowed: fp32, fp16, bf16"):
        load_encoder(spec, device="cpu", precision="fp8")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there(spec: EncoderSpec, device: str) -> None:
    with pytest.raises(RetrievalError, match=f"cannot be used. Given: {device}"):
        load_encoder(spec, device=device)


def test_directory_without_weights(spec: EncoderSpec, tmp_path: Path) -> None:
    copy = shutil.copytree(spec.name.removeprefix("local-dir:"), tmp_path / "copy")
    (copy / "open_clip_model.safetensors").unlink()
    with pytest.raises(RetrievalError, match="cannot be loaded"):
        load_encoder(EncoderSpec("open_clip", f"local-dir:{copy}"), device="cpu")
