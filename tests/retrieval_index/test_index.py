"""CaptionIndex: search, captions, and the refusal of another encoder."""

from __future__ import annotations

import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval_index import CaptionIndex
from retrieval_index import index as module
from retrieval_index.encoders import Encoder, EncoderSpec, load_encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.manifest import read_manifest, write_manifest
from retrieval_index.recall import Queries
from tests.tiny_clip import random_captions, write_pictures, write_tiny_clip, write_tiny_sentence_model

CAPTIONS = random_captions(40)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, spec: EncoderSpec) -> Path:
    root = tmp_path_factory.mktemp("index")
    (root / "captions.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    CaptionIndex.build(root / "captions.txt", root / "index", spec, device="cpu", shard_rows=16)
    return root / "index"


def test_a_caption_finds_itself(path: Path, spec: EncoderSpec, encoder: Encoder) -> None:
    index = CaptionIndex.open(path, encoder=encoder, spec=spec)
    scores, rows = index.search(encoder.encode_texts(CAPTIONS[5:8], batch_size=4), k=3)
    assert len(index) == 40
    assert index.captions(rows[:, 0]) == CAPTIONS[5:8]
    assert index.ids(rows[:, 0]) == ["captions.txt:6", "captions.txt:7", "captions.txt:8"]
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_exact_search_equals_faiss_for_pictures(path: Path, encoder: Encoder, tmp_path: Path) -> None:
    index = CaptionIndex.open(path, encoder=encoder)
    queries = encoder.encode_images(write_pictures(tmp_path, 9), batch_size=4)
    scores, rows = index.search(queries, k=7)
    exact_scores, exact_rows = index.search_exact(queries, k=7)
    np.testing.assert_array_equal(exact_rows, rows)
    np.testing.assert_allclose(exact_scores, scores, atol=1e-6)


def test_without_faiss_the_search_is_exact(path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = encoder.encode_texts(CAPTIONS[:3], batch_size=4)
    expected = CaptionIndex.open(path).search(queries, k=5)[1]
    monkeypatch.setattr(module, "has_faiss", lambda: False)
    monkeypatch.setattr(module, "open_faiss", lambda *_: pytest.fail("FAISS was used"))
    np.testing.assert_array_equal(CaptionIndex.open(path).search(queries, k=5)[1], expected)


def test_an_approximate_index_is_asked_as_it_was_measured(tmp_path: Path, spec: EncoderSpec, encoder: Encoder) -> None:
    captions = random_captions(1500)
    (tmp_path / "captions.txt").write_text("\n".join(captions), encoding="utf-8")
    queries = encoder.encode_images(write_pictures(tmp_path / "p", 60), batch_size=32)
    index = CaptionIndex.build(
        tmp_path / "captions.txt", tmp_path / "index", spec, encoder=encoder, kind="ivf_pq", recall_k=5,
        queries=lambda: Queries(queries, "pictures"),
    )  # fmt: skip
    record = index.manifest.index
    assert record.recall.value >= 0.95 and record.search["refine"] >= 4
    scores, rows = index.search(queries, 5)
    np.testing.assert_allclose(
        scores, np.take_along_axis(queries @ index.embeddings(range(1500)).T, rows, 1), atol=1e-5
    )
    exact = index.search_exact(queries, 5)[1]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]) >= 0.94


def test_embeddings_by_row(path: Path, encoder: Encoder) -> None:
    index = CaptionIndex.open(path)
    expected = encoder.encode_texts(CAPTIONS, batch_size=64)
    np.testing.assert_allclose(index.embeddings([39, 0, 16, 16]), expected[[39, 0, 16, 16]], atol=1e-6)


def _first_caption(path: Path) -> list[str]:
    return CaptionIndex.open(path).captions([0])


def test_other_processes_open_it_too(path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_first_caption, [path, path]) == [[CAPTIONS[0]]] * 2


def test_another_encoder_is_refused_by_name(path: Path, tmp_path: Path, spec: EncoderSpec) -> None:
    other = EncoderSpec("open_clip", write_tiny_clip(tmp_path / "other", seed=1))
    message = f"made with another encoder. Given: {other.identity()}.* Allowed: {spec.identity()}"
    with pytest.raises(RetrievalError, match=message):
        CaptionIndex.open(path, spec=other)


def test_another_encoder_is_refused_by_width(path: Path, tmp_path: Path) -> None:
    other = load_encoder(EncoderSpec("open_clip", write_tiny_clip(tmp_path / "other", width=8)), device="cpu")
    with pytest.raises(RetrievalError, match="Given: width 8. Allowed: width 16"):
        CaptionIndex.open(path, encoder=other)


def test_another_encoder_is_refused_by_its_golden_embedding(path: Path, tmp_path: Path) -> None:
    other = load_encoder(EncoderSpec("open_clip", write_tiny_clip(tmp_path / "other", seed=1)), device="cpu")
    with pytest.raises(RetrievalError, match="golden sentence has cosine .* Allowed: cosine >= 0.999"):
        CaptionIndex.open(path, encoder=other)


def test_other_preprocessing_of_pictures_is_refused(path: Path, encoder: Encoder) -> None:
    class Flipped:
        def __getattr__(self, name: str) -> object:
            return getattr(encoder, name)

        def encode_images(self, pictures: list, **options: object) -> np.ndarray:
            turned = [lambda picture=picture: picture().rotate(180) for picture in pictures]
            return encoder.encode_images(turned, **options)

    with pytest.raises(RetrievalError, match="golden picture has cosine .* Allowed: cosine >= 0.99"):
        CaptionIndex.open(path, encoder=Flipped())


def test_another_kind_of_encoder_is_refused(path: Path, tmp_path: Path) -> None:
    other = EncoderSpec("sentence_transformers", write_tiny_sentence_model(tmp_path / "model"))
    with pytest.raises(RetrievalError, match="Given: sentence_transformers:local:"):
        CaptionIndex.open(path, spec=other)


def test_lower_precision_of_the_same_encoder_is_accepted(path: Path, spec: EncoderSpec) -> None:
    half = load_encoder(spec, device="cpu", precision="bf16")
    assert len(CaptionIndex.open(path, encoder=half)) == 40


def test_k_and_width_are_checked(path: Path) -> None:
    index = CaptionIndex.open(path)
    with pytest.raises(RetrievalError, match="Given: k=41. Allowed: 1 to 40"):
        index.search(np.zeros((1, 16), np.float32), k=41)
    with pytest.raises(RetrievalError, match=r"Given: shape \[16\]"):
        index.search(np.zeros(16, np.float32), k=1)


def copy_of(path: Path, copy: Path) -> Path:
    copy.mkdir()
    for name in ("shards", "duplicates", "index"):
        (copy / name).symlink_to(path / name)
    return copy


def test_a_manifest_that_does_not_fit_the_files(path: Path, tmp_path: Path) -> None:
    copy, manifest = copy_of(path, tmp_path / "copy"), CaptionIndex.open(path).manifest
    write_manifest(copy, replace(manifest, shards=(*manifest.shards[:2], replace(manifest.shards[2], rows=7))))
    with pytest.raises(RetrievalError, match=r"Given: .*float32\[8, 16\]. Allowed: float32\[7, 16\]"):
        CaptionIndex.open(copy)
    write_manifest(copy, replace(manifest, index=replace(manifest.index, bytes=9)))
    with pytest.raises(RetrievalError, match="Given: .*00000.faiss: .* bytes. Allowed: 9 bytes"):
        CaptionIndex.open(copy)
    write_manifest(copy, replace(manifest, index=replace(manifest.index, file="index/none.faiss")))
    with pytest.raises(RetrievalError, match="FAISS index cannot be read"):
        CaptionIndex.open(copy)


def test_a_version_that_is_replaced_while_it_is_opened_gives_way_to_the_next(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(path, tmp_path / "index")
    manifest = read_manifest(path)
    (tmp_path / "index/index/00000.faiss").rename(tmp_path / "index/index/00001.faiss")
    new = replace(manifest, index=replace(manifest.index, file="index/00001.faiss"))

    def open_store(*arguments: object) -> None:
        write_manifest(tmp_path / "index", new)  # the growth is complete now
        monkeypatch.undo()

    monkeypatch.setattr(module, "CaptionStore", open_store)
    opened = CaptionIndex.open(tmp_path / "index")
    assert opened.manifest == new and opened.captions([0])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="no complete caption index"):
        CaptionIndex.open(tmp_path)
