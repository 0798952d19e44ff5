"""The files of an index: caption store, shards, manifest, and temporary names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrieval_index.captions import Corpus
from retrieval_index.errors import RetrievalError
from retrieval_index.store import (
    CaptionStore,
    Manifest,
    open_shards,
    read_manifest,
    replacing,
    shard_path,
    write_captions,
    write_manifest,
    write_shard,
)

CORPUS = Corpus(("one", "zw\u00f6lf", "three"), (("a",), ("b", "c"), ("d",)), 4, 1, 0, "0" * 64)


def manifest(rows: int = 5) -> Manifest:
    golden = (0.6, 0.8)
    return Manifest("0" * 64, 6, 1, 0, rows, "open_clip:x/y", "open_clip", "x", "y", golden, 2, "float32", 2, {})


def test_captions_by_row(tmp_path: Path) -> None:
    write_captions(tmp_path, CORPUS)
    store = CaptionStore(tmp_path)
    assert len(store) == 3
    assert store.captions([2, 0, 2]) == ["three", "one", "three"]
    assert store.ids(np.array([1])) == ["b"]
    assert list(store.records()) == [(("a",), "one"), (("b", "c"), "zw\u00f6lf"), (("d",), "three")]


def test_the_caption_store_is_plain_arrow(tmp_path: Path) -> None:
    write_captions(tmp_path, CORPUS)
    with pa.OSFile(str(tmp_path / "captions.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column_names == ["id", "caption", "other_ids"]
    assert table.column("other_ids").to_pylist() == [[], ["c"], []]


def test_manifest_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path) == manifest()
    assert json.loads((tmp_path / "manifest.json").read_text())["golden_embedding"] == [0.6, 0.8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no complete caption index"),
        ("{", "damaged"),
        ('{"format_version": 1}', "damaged"),
        ('{"format_version": 9}', "Given: 9. Allowed: 1"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RetrievalError, match=message):
        read_manifest(tmp_path)


def test_shards_are_numbered_and_mapped(tmp_path: Path) -> None:
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    for number in range(3):
        write_shard(tmp_path, number, vectors[2 * number : 2 * number + 2])
    assert [path.name for path in sorted((tmp_path / "shards").iterdir())] == ["00000.npy", "00001.npy", "00002.npy"]
    shards = open_shards(tmp_path, manifest())
    assert all(isinstance(shard, np.memmap) for shard in shards)
    np.testing.assert_array_equal(np.concatenate(shards), vectors)


def test_a_missing_cut_or_foreign_shard_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, np.zeros((2, 2), np.float32))
    with pytest.raises(RetrievalError, match="cannot be read. Given: .*00001.npy"):
        open_shards(tmp_path, manifest(rows=3))
    content = shard_path(tmp_path, 0).read_bytes()
    shard_path(tmp_path, 0).write_bytes(content[:-4])
    with pytest.raises(RetrievalError, match="cannot be read. Given: .*00000.npy"):
        open_shards(tmp_path, manifest(rows=2))
    write_shard(tmp_path, 0, np.zeros((2, 3), np.float32))
    with pytest.raises(RetrievalError, match=r"Given: .*float32\[2, 3\]. Allowed: float32\[2, 2\]"):
        open_shards(tmp_path, manifest(rows=2))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match="halfway"), replacing(path) as temporary:
        temporary.write_text("ne")
        raise ValueError("halfway")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
