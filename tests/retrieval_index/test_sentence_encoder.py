"""The sentence-transformers encoder against the library called directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from retrieval_index.encoders import EncoderSpec, load_encoder
from retrieval_index.errors import RetrievalError
from tests.tiny_clip import random_captions, write_tiny_sentence_model


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_sentence_model(tmp_path_factory.mktemp("sentence") / "model")


def test_texts_equal_the_librarys(name: str) -> None:
    captions = random_captions(20)
    encoder = load_encoder(EncoderSpec("sentence_transformers", name), device="cpu")
    expected = SentenceTransformer(name, device="cpu").encode(captions, normalize_embeddings=True)
    assert encoder.width == 16 and not encoder.encodes_images
    np.testing.assert_allclose(encoder.encode_texts(captions, batch_size=8), expected, atol=1e-6)


def test_local_dir_prefix_names_the_same_encoder(name: str) -> None:
    plain, prefixed = (
        EncoderSpec("sentence_transformers", name),
        EncoderSpec("sentence_transformers", f"local-dir:{name}"),
    )
    assert plain.identity() == prefixed.identity()
    assert load_encoder(prefixed, device="cpu").width == 16


def test_pictures_are_refused(name: str, tmp_path: Path) -> None:
    encoder = load_encoder(EncoderSpec("sentence_transformers", name), device="cpu")
    with pytest.raises(RetrievalError, match="reads text only"):
        encoder.encode_images([tmp_path / "a.png"], batch_size=1)
