"""Held-out queries from pictures, vectors and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.queries import caption_queries, find_pictures, read_queries
from tests.retrieval_index.cheap_encoder import CheapEncoder
from tests.retrieval_index.vectors import captions_and_pictures, write_vectors
from tests.tiny_clip import write_pictures


def test_pictures_of_a_folder_or_a_pattern(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "p" / "deeper", 6)
    (tmp_path / "p" / "notes.txt").write_text("x")
    encoder = CheapEncoder()
    queries = read_queries(tmp_path / "p", encoder, count=100, batch_size=4)
    assert queries.of == "pictures" and queries.own is None
    np.testing.assert_array_equal(queries.vectors, encoder.encode_images(pictures, batch_size=6))
    assert len(read_queries(tmp_path / "p/deeper/00[1-3].png", encoder, count=2, batch_size=4).vectors) == 2
    assert find_pictures(pictures[0]) == pictures[:1]


def test_vectors_of_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.ones((30, 16), np.float16))
    queries = read_queries(tmp_path / "q.npy", CheapEncoder(), count=25, batch_size=4)
    assert queries.of == "vectors" and queries.vectors.shape == (25, 16) and queries.vectors.dtype == np.float32
    np.save(tmp_path / "q.npy", np.ones((30, 8), np.float32))
    with pytest.raises(RetrievalError, match=r"Allowed: \[queries, 16\]"):
        read_queries(tmp_path / "q.npy", CheapEncoder(), count=25, batch_size=4)
    (tmp_path / "q.npy").write_bytes(b"no vectors")
    with pytest.raises(RetrievalError, match="query vectors cannot be read"):
        read_queries(tmp_path / "q.npy", CheapEncoder(), count=25, batch_size=4)


def test_captions_of_the_corpus_know_themselves(tmp_path: Path) -> None:
    captions, _ = captions_and_pictures(90, 1, 16)
    queries = caption_queries(write_vectors(tmp_path, captions), 40)
    assert queries.of == "captions" and queries.own is not None and len(queries.own) == 40
    np.testing.assert_array_equal(queries.vectors, captions[queries.own])


@pytest.mark.parametrize("place", ["none", "*.png", "c.txt"])
def test_no_pictures(tmp_path: Path, place: str) -> None:
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(RetrievalError, match="no pictures here.*index.queries=PATH"):
        find_pictures(tmp_path / place)
