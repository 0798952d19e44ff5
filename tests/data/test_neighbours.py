"""The join of a data set to an index, against a search written out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval_index.encoders import Encoder, EncoderSpec, load_encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.index import CaptionIndex
from tests.tiny_clip import random_captions, write_pictures, write_tiny_clip, write_tiny_sentence_model
from tga.data import neighbours
from tga.data.llava_json import load_llava_json
from tga.data.loading import with_neighbours
from tga.data.neighbours import Joined, join_neighbours, read_fingerprint
from tga.errors import UserError

CAPTIONS = random_captions(30)
SAMPLES = 8


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncoderSpec, Encoder]:
    spec = EncoderSpec("open_clip", write_tiny_clip(tmp_path_factory.mktemp("encoder") / "clip"))
    return spec, load_encoder(spec, device="cpu")


@pytest.fixture
def index(tmp_path: Path, encoder: tuple[EncoderSpec, Encoder]) -> Path:
    """30 captions; the first one bears the id of the first sample."""
    rows = [{"id": "sample-0" if row == 0 else f"caption-{row}", "caption": text} for row, text in enumerate(CAPTIONS)]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    spec, loaded = encoder
    CaptionIndex.build(tmp_path / "captions.jsonl", tmp_path / "index", spec, encoder=loaded, shard_rows=11)
    return tmp_path / "index"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sample n of 8 shows picture n; its caption is caption n in another spelling; that of sample 0 is in no index."""
    records: list[dict[str, Any]] = []
    for number, path in enumerate(write_pictures(tmp_path / "images", SAMPLES)):
        answer = "something else" if number == 0 else f"  {CAPTIONS[number].upper()} "
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
        records.append({"id": f"sample-{number}", "image": path.name, "conversations": turns})
    text = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello"}]
    records.append({"id": "text-only", "conversations": text})
    (tmp_path / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return tmp_path / "data.json"


def join(index: Path, data: Path, encoder: Encoder, k: int) -> tuple[Joined, list[dict[str, Any]]]:
    out = data.parent / "neighbours.parquet"
    samples = load_llava_json(data, data.parent / "images")
    joined = join_neighbours(index, samples, out, k=k, encoder=encoder, batch_size=3)
    return joined, pq.read_table(out).to_pylist()


def test_equals_a_search_by_hand_without_the_own_caption(
    index: Path, data: Path, encoder: tuple[EncoderSpec, Encoder]
) -> None:
    joined, rows = join(index, data, encoder[1], k=5)
    pictures = encoder[1].encode_images(sorted((data.parent / "images").iterdir()), batch_size=8)
    products = pictures @ encoder[1].encode_texts(CAPTIONS, batch_size=8).T
    assert joined == Joined(samples=SAMPLES, without_query=0)
    assert [row["id"] for row in rows] == [f"sample-{number}" for number in range(SAMPLES)]
    for number, row in enumerate(rows):
        order = [caption for caption in np.argsort(-products[number]) if caption != number][:5]
        assert row["texts"] == [CAPTIONS[caption] for caption in order]
        assert row["neighbour_ids"] == ["sample-0" if caption == 0 else f"caption-{caption}" for caption in order]
        np.testing.assert_allclose(row["scores"], products[number][order], atol=1e-5)


def test_all_but_the_own_caption_may_be_asked_for(
    index: Path, data: Path, encoder: tuple[EncoderSpec, Encoder]
) -> None:
    _, rows = join(index, data, encoder[1], k=29)
    assert all(sorted(row["texts"]) == sorted(set(CAPTIONS) - {CAPTIONS[n]}) for n, row in enumerate(rows))
    with pytest.raises(RetrievalError, match="Given: k=30. Allowed: 1 to 29"):
        join(index, data, encoder[1], k=30)


def test_blocks_do_not_change_the_result(
    index: Path, data: Path, encoder: tuple[EncoderSpec, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = join(index, data, encoder[1], k=4)
    monkeypatch.setattr(neighbours, "BLOCK", 3)
    _, blocks = join(index, data, encoder[1], k=4)
    for one, other in zip(whole, blocks, strict=True):
        assert (one["id"], one["neighbour_ids"]) == (other["id"], other["neighbour_ids"])
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-6)


def test_the_file_is_read_back_by_the_data_loader(
    index: Path, data: Path, encoder: tuple[EncoderSpec, Encoder]
) -> None:
    _, rows = join(index, data, encoder[1], k=3)
    out = data.parent / "neighbours.parquet"
    samples = with_neighbours(load_llava_json(data, data.parent / "images"), out, used=2)
    assert [sample.neighbours for sample in samples[:SAMPLES]] == [tuple(row["texts"][:2]) for row in rows]
    assert samples[SAMPLES].neighbours == ()
    assert pq.read_schema(out).names == ["id", "neighbour_ids", "scores", "texts"]


def test_a_text_encoder_asks_with_the_caption(index: Path, data: Path, tmp_path: Path) -> None:
    spec = EncoderSpec("sentence_transformers", write_tiny_sentence_model(tmp_path / "model"))
    encoder = load_encoder(spec, device="cpu")
    CaptionIndex.build(tmp_path / "captions.jsonl", tmp_path / "sentences", spec, encoder=encoder)
    records = json.loads(data.read_text())
    records[2]["conversations"] *= 2  # two rounds: no caption
    data.write_text(json.dumps(records).replace("<image>", ""))
    joined, rows = join(tmp_path / "sentences", data, encoder, k=2)
    assert joined == Joined(samples=SAMPLES - 1, without_query=1)
    assert rows[2]["texts"] == rows[2]["scores"] == []
    query = encoder.encode_texts([CAPTIONS[3].upper()], batch_size=1)[0]
    products = encoder.encode_texts(CAPTIONS, batch_size=8) @ query
    order = [caption for caption in np.argsort(-products) if caption != 3][:2]
    assert rows[3]["texts"] == [CAPTIONS[caption] for caption in order]


def test_the_fingerprint_follows_what_decides_the_result(
    index: Path, data: Path, encoder: tuple[EncoderSpec, Encoder]
) -> None:
    out = data.parent / "neighbours.parquet"
    assert read_fingerprint(out) is None

    def made(k: int) -> str | None:
        join(index, data, encoder[1], k=k)
        return read_fingerprint(out)

    first = made(3)
    assert first is not None and len(first) == 64 and made(3) == first
    assert made(4) != first
    write_pictures(data.parent / "images", SAMPLES, size=32)
    assert made(3) != first


def test_nothing_is_left_by_a_failed_join(index: Path, data: Path, encoder: tuple[EncoderSpec, Encoder]) -> None:
    (data.parent / "images" / "005.png").write_bytes(b"broken")
    with pytest.raises(RetrievalError, match="cannot be decoded. Given: .*005.png"):
        join(index, data, encoder[1], k=2)
    (data.parent / "images" / "005.png").unlink()
    with pytest.raises(UserError, match="1 pictures are missing"):
        join(index, data, encoder[1], k=2)
    assert sorted(path.name for path in data.parent.iterdir()) == ["captions.jsonl", "data.json", "images", "index"]


def test_an_index_of_another_encoder_is_refused(index: Path, data: Path, tmp_path: Path) -> None:
    other = load_encoder(EncoderSpec("open_clip", write_tiny_clip(tmp_path / "other", seed=1)), device="cpu")
    with pytest.raises(RetrievalError, match="made with another encoder"):
        join(index, data, other, k=2)


def test_only_an_earlier_neighbours_file_is_replaced(
    index: Path, data: Path, encoder: tuple[EncoderSpec, Encoder]
) -> None:
    out = data.parent / "neighbours.parquet"
    pq.write_table(pa.table({"id": ["a"], "caption": ["of a data set"]}), out)
    before = out.read_bytes()
    with pytest.raises(UserError, match="no neighbours file.*neighbours_out="):
        join(index, data, encoder[1], k=2)
    assert out.read_bytes() == before
    out.unlink()
    parts = data.parent / ".neighbours.parquet.parts"
    parts.mkdir()
    (parts / "000000.parquet").write_text("mine")
    with pytest.raises(UserError, match="where something else is.*000000.parquet"):
        join(index, data, encoder[1], k=2)
    assert (parts / "000000.parquet").read_text() == "mine"
