"""Building: what is written, what an interruption leaves, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval_index.build import build_index
from retrieval_index.captions import Corpus, read_corpus
from retrieval_index.encoders import GOLDEN_SENTENCE, Encoder, EncoderSpec
from retrieval_index.errors import RetrievalError
from retrieval_index.store import read_manifest
from tests.tiny_clip import random_captions


class Counting:
    """An encoder that counts captions and stops like a killed process after `limit` of them."""

    encodes_images = False

    def __init__(self, encoder: Encoder, limit: int = 10**9) -> None:
        self._encoder, self.width, self.limit, self.encoded = encoder, encoder.width, limit, 0

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        if list(texts) != [GOLDEN_SENTENCE]:
            self.encoded += len(texts)
        if self.encoded > self.limit:
            raise KeyboardInterrupt
        return self._encoder.encode_texts(texts, batch_size=batch_size, report=report)

    def encode_images(self, *args: object, **kwargs: object) -> np.ndarray:
        raise NotImplementedError


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(random_captions(23)), encoding="utf-8")
    return read_corpus([file])


def contents(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_files_hashes_and_vectors(tmp_path: Path, corpus: Corpus, encoder: Encoder, spec: EncoderSpec) -> None:
    out = tmp_path / "index"
    manifest = build_index(corpus, out, encoder, spec, shard_rows=10, batch_size=4)
    found = contents(out)
    shards = [f"shards/0000{number}.npy" for number in range(3)]
    assert sorted(found) == sorted(["captions.arrow", "index/flat.faiss", "manifest.json", *shards])
    assert manifest.sha256 == {name: value for name, value in found.items() if name != "manifest.json"}
    assert read_manifest(out) == manifest
    assert (manifest.rows, manifest.width, manifest.encoder) == (23, 16, spec.identity())
    flat = faiss.read_index(str(out / "index" / "flat.faiss"))
    expected = encoder.encode_texts(corpus.texts, batch_size=23)
    np.testing.assert_allclose(flat.reconstruct_n(0, 23), expected, atol=1e-6)


def test_half_precision_on_disk(tmp_path: Path, corpus: Corpus, encoder: Encoder, spec: EncoderSpec) -> None:
    build_index(corpus, tmp_path / "index", encoder, spec, dtype="float16")
    shard = np.load(tmp_path / "index" / "shards" / "00000.npy")
    assert shard.dtype == np.float16
    np.testing.assert_allclose(shard, encoder.encode_texts(corpus.texts, batch_size=256), atol=1e-3)


def test_an_interrupted_build_is_continued_byte_for_byte(
    tmp_path: Path, corpus: Corpus, encoder: Encoder, spec: EncoderSpec
) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "index"
    build_index(corpus, undisturbed, encoder, spec, shard_rows=10, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        build_index(corpus, out, Counting(encoder, limit=15), spec, shard_rows=10, batch_size=4)
    assert not out.exists()
    (tmp_path / "index.building" / "shards" / ".00001.npy.17.tmp").write_bytes(b"half a shard")
    counting = Counting(encoder)
    build_index(corpus, out, counting, spec, shard_rows=10, batch_size=4)
    assert counting.encoded == 13  # 10 of 23 were there
    assert contents(out) == contents(undisturbed)
    assert not (tmp_path / "index.building").exists()


def test_an_interrupted_build_of_other_settings_is_not_continued(
    tmp_path: Path, corpus: Corpus, encoder: Encoder, spec: EncoderSpec
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(corpus, tmp_path / "index", Counting(encoder, limit=15), spec, shard_rows=10)
    counting = Counting(encoder)
    build_index(corpus, tmp_path / "index", counting, spec, shard_rows=10, dtype="float16")
    assert counting.encoded == 23


def test_a_rebuild_replaces_the_index_only_when_complete(
    tmp_path: Path, corpus: Corpus, encoder: Encoder, spec: EncoderSpec
) -> None:
    out = tmp_path / "index"
    build_index(corpus, out, encoder, spec)
    before = contents(out)
    with pytest.raises(KeyboardInterrupt):
        build_index(corpus, out, Counting(encoder, limit=1), spec, dtype="float16")
    assert contents(out) == before
    build_index(corpus, out, encoder, spec, dtype="float16")
    assert read_manifest(out).dtype == "float16"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "index"]


def test_progress_by_stage(tmp_path: Path, corpus: Corpus, encoder: Encoder, spec: EncoderSpec) -> None:
    seen: list[tuple[str, int, int]] = []
    build_index(
        corpus,
        tmp_path / "index",
        encoder,
        spec,
        shard_rows=20,
        batch_size=20,
        progress=lambda *args: seen.append(args),
    )
    assert seen == [("encode", n, 23) for n in (20, 20, 23, 23)] + [("index", 0, 23), ("index", 23, 23)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "Given: int8. Allowed: float32, float16"),
        ({"shard_rows": 0}, "shard_rows must be positive"),
        ({"batch_size": -1}, "batch_size must be positive"),
    ],
)
def test_impossible_settings(
    tmp_path: Path, corpus: Corpus, encoder: Encoder, spec: EncoderSpec, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(RetrievalError, match=message):
        build_index(corpus, tmp_path / "index", encoder, spec, **settings)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["captions.txt"]


def test_a_directory_of_something_else_is_not_replaced(
    tmp_path: Path, corpus: Corpus, encoder: Encoder, spec: EncoderSpec
) -> None:
    with pytest.raises(RetrievalError, match="something else than an index"):
        build_index(corpus, tmp_path, encoder, spec)


def test_vectors_that_are_not_finite(tmp_path: Path, corpus: Corpus, encoder: Encoder, spec: EncoderSpec) -> None:
    class Broken(Counting):
        def encode_texts(
            self, texts: Sequence[str], *, batch_size: int, report: Callable[[int], None] | None = None
        ) -> np.ndarray:
            vectors = super().encode_texts(texts, batch_size=batch_size)
            vectors[2:4] *= np.nan
            return vectors

    with pytest.raises(RetrievalError, match="not finite. Given: 2 captions, the first one "):
        build_index(corpus, tmp_path / "index", Broken(encoder), spec)
    assert not (tmp_path / "index").exists()
