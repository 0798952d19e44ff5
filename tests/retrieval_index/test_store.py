"""Captions and shards as they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrieval_index.captions import caption_key, normalise
from retrieval_index.corpus import read_file, write_rows
from retrieval_index.errors import RetrievalError
from retrieval_index.manifest import Manifest, Shard, Source
from retrieval_index.readers import Keys
from retrieval_index.store import CaptionStore, embeddings_path, open_shards, rows_path, write_embeddings
from tests.retrieval_index.test_manifest import MANIFEST

TEXTS = ["one", "zw\u00f6lf", "three", "four", "five"]


def manifest(*rows: int, sources: int = 1) -> Manifest:
    shards = tuple(Shard(count, 0, "", "") for count in rows)
    return replace(MANIFEST, shards=shards, sources=(Source("", 0, 0, 0, 0, 0),) * sources)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Five captions in shards of two, one of them three times, and a growth that repeats two of them."""
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("\n".join([*TEXTS, "ZW\u00d6LF", "Zw\u00f6lf"]), encoding="utf-8")
    second.write_text("THREE\nthree\nzw\u00f6lf\nsix", encoding="utf-8")
    work = tmp_path / "index"
    read_file(first, work, 0, Keys(), 100)
    write_rows(work, 1, (), first_shard=0, generation=0, shard_rows=2, memory=10**7)
    (work / "rows.json").unlink()
    read_file(second, work, 0, Keys(), 100)
    known = [rows_path(work, number) for number in range(3)]
    write_rows(work, 1, known, first_shard=3, generation=1, shard_rows=2, memory=10**7)
    return work


def test_captions_ids_and_counts_by_row(directory: Path) -> None:
    store = CaptionStore(directory, manifest(2, 2, 1))
    assert len(store) == 5
    assert store.captions([4, 0, 1, 4]) == ["five", "one", "zw\u00f6lf", "five"]
    assert store.ids(np.array([1])) == ["a.txt:2"]
    assert store.captions([]) == []
    assert store.counts([2, 1, 1]) == [1, 3, 3]
    with pytest.raises(IndexError, match="0..4"):
        store.captions([5])
    with pytest.raises(IndexError, match="0..4"):
        store.captions([-1])


def test_a_growth_adds_rows_and_counts(directory: Path) -> None:
    store = CaptionStore(directory, manifest(2, 2, 1, 1, sources=2))
    assert store.captions([5]) == ["six"]
    assert store.counts([2, 1, 0, 5]) == [3, 4, 1, 1]


def test_rows_by_id_and_by_key(directory: Path) -> None:
    store = CaptionStore(directory, manifest(2, 2, 1, 1, sources=2))
    ids = ["a.txt:2", "a.txt:7", "b.txt:2", "b.txt:4", "none", "a.txt:2"]
    assert store.rows_of_ids(ids) == {
        "a.txt:2": {1}, "a.txt:7": {1}, "b.txt:2": {2}, "b.txt:4": {5}, "none": set(),
    }  # fmt: skip
    keys = [caption_key(normalise(text)) for text in ("Three ", "seven")]
    assert list(store.rows_of_keys(keys).values()) == [{2}, set()]


def test_the_rows_are_plain_arrow(directory: Path) -> None:
    with pa.OSFile(str(rows_path(directory, 0))) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column_names == ["id", "caption", "key", "count"]
    assert table.column("count").to_pylist() == [1, 3]


def test_captions_that_are_missing_cut_or_of_another_number(directory: Path) -> None:
    with pytest.raises(RetrievalError, match="2 captions. Allowed: 1"):
        CaptionStore(directory, manifest(2, 1))
    path = rows_path(directory, 1)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RetrievalError, match="cannot be read. Given: .*00001.arrow"):
        CaptionStore(directory, manifest(2, 2))
    path.unlink()
    with pytest.raises(RetrievalError, match="cannot be read. Given: .*00001.arrow"):
        CaptionStore(directory, manifest(2, 2))


def test_shards_are_numbered_and_mapped(tmp_path: Path) -> None:
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    for number in range(3):
        write_embeddings(tmp_path, number, vectors[2 * number : 2 * number + 2])
    assert [path.name for path in sorted((tmp_path / "shards").iterdir())] == ["00000.npy", "00001.npy", "00002.npy"]
    shards = open_shards(tmp_path, manifest(2, 2, 1))
    assert all(isinstance(shard, np.memmap) for shard in shards)
    np.testing.assert_array_equal(np.concatenate(shards), vectors)


def test_a_missing_cut_or_foreign_shard_is_refused(tmp_path: Path) -> None:
    write_embeddings(tmp_path, 0, np.zeros((2, 2), np.float32))
    with pytest.raises(RetrievalError, match="cannot be read. Given: .*00001.npy"):
        open_shards(tmp_path, manifest(2, 1))
    content = embeddings_path(tmp_path, 0).read_bytes()
    embeddings_path(tmp_path, 0).write_bytes(content[:-4])
    with pytest.raises(RetrievalError, match="cannot be read. Given: .*00000.npy"):
        open_shards(tmp_path, manifest(2))
    write_embeddings(tmp_path, 0, np.zeros((2, 3), np.float32))
    with pytest.raises(RetrievalError, match=r"Given: .*float32\[2, 3\]. Allowed: float32\[2, 2\]"):
        open_shards(tmp_path, manifest(2))


def test_too_many_open_files_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(np, "load", refused)
    with pytest.raises(RetrievalError, match="more shards than files may be open.*ulimit -n 65536"):
        open_shards(tmp_path, manifest(2))
