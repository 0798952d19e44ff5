"""From files to rows: what is kept, counted and left out, and an interruption in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from retrieval_index import corpus
from retrieval_index.corpus import ReadCounts, Written, hash_corpus, read_file, refuse_empty, write_rows
from retrieval_index.errors import RetrievalError
from retrieval_index.readers import Keys

MEMORY = 10**8


def table(path: Path) -> list[dict[str, Any]]:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).read_all().to_pylist()


def read(work: Path, *files: Path, shard_rows: int = 100, memory: int = MEMORY, longest: int = 100) -> Written:
    for number, file in enumerate(files):
        read_file(file, work, number, Keys(), longest)
    return write_rows(work, len(files), (), first_shard=0, generation=0, shard_rows=shard_rows, memory=memory)


def texts(work: Path) -> list[str]:
    return [row["caption"] for path in sorted((work / "shards").iterdir()) for row in table(path)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.txt"
    path.write_text(f"A red  car\n\nTwo dogs\n  a RED car \n\u00a0\n{'long ' * 30}\nA cat\n", encoding="utf-8")
    return path


def test_first_spelling_counts_and_ids(tmp_path: Path, file: Path) -> None:
    written = read(tmp_path / "work", file)
    assert written == Written(rows=3, duplicates=1, counts=ReadCounts(read=7, without_caption=2, too_long=1))
    rows = table(tmp_path / "work/shards/00000.arrow")
    assert [(row["caption"], row["id"], row["count"]) for row in rows] == [
        ("A red car", "c.txt:1", 2), ("Two dogs", "c.txt:3", 1), ("A cat", "c.txt:7", 1),
    ]  # fmt: skip
    assert table(tmp_path / "work/duplicates/00000.arrow") == [{"row": 0, "id": "c.txt:4"}]
    assert not (tmp_path / "work/read").exists()


def test_empty_captions_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"caption": " "}\n{"id": "y"}\n{"caption": "x"}', encoding="utf-8")
    assert read(tmp_path / "work", path).counts == ReadCounts(read=3, without_caption=2, too_long=0)


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "\\ud800", "caption": "a \\udc00 b"}', encoding="utf-8")
    read(tmp_path / "work", path)
    assert [(row["id"], row["caption"]) for row in table(tmp_path / "work/shards/00000.arrow")] == [("?", "a ? b")]


@pytest.mark.parametrize("memory", [MEMORY, 200])
def test_shards_files_and_parts_do_not_change_the_rows(
    tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BATCH", 4)
    lines = [f"caption {n % 17}" for n in range(60)]
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, part in zip(paths, (lines[:25], lines[25:]), strict=True):
        path.write_text("\n".join(part), encoding="utf-8")
    written = read(tmp_path / "work", *paths, shard_rows=5, memory=memory)
    assert (written.rows, written.duplicates) == (17, 43)
    assert texts(tmp_path / "work") == [f"caption {n}" for n in range(17)]
    assert [len(table(path)) for path in sorted((tmp_path / "work/shards").iterdir())] == [5, 5, 5, 2]
    duplicates = table(tmp_path / "work/duplicates/00000.arrow")
    assert [row["row"] for row in duplicates] == [n % 17 for n in range(17, 60)]
    assert duplicates[0]["id"] == "a.txt:18" and duplicates[-1]["id"] == "b.txt:35"


def test_an_interrupted_reading_goes_on_with_the_next_file(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "d.txt"
    second.write_text("Two dogs\nA bird", encoding="utf-8")
    read_file(file, tmp_path / "work", 0, Keys(), 100)
    opened: list[Path] = []
    records = corpus.read_records
    monkeypatch.setattr(corpus, "read_records", lambda path, keys: opened.append(path) or records(path, keys))
    read(tmp_path / "work", file, second)
    assert opened == [second]
    assert texts(tmp_path / "work") == ["A red car", "Two dogs", "A cat", "A bird"]


def test_known_rows_come_first(tmp_path: Path, file: Path) -> None:
    read(tmp_path / "old", file, shard_rows=2)
    known = sorted((tmp_path / "old/shards").iterdir())
    new = tmp_path / "n.txt"
    new.write_text("a CAT\nA bird\nA bird\ntwo  dogs", encoding="utf-8")
    read_file(new, tmp_path / "new", 0, Keys(), 100)
    written = write_rows(tmp_path / "new", 1, known, first_shard=2, generation=1, shard_rows=2, memory=MEMORY)
    assert (written.rows, written.duplicates) == (1, 3)
    assert [(row["caption"], row["count"]) for row in table(tmp_path / "new/shards/00002.arrow")] == [("A bird", 2)]
    assert table(tmp_path / "new/duplicates/00001.arrow") == [
        {"row": 2, "id": "n.txt:1"}, {"row": 3, "id": "n.txt:3"}, {"row": 1, "id": "n.txt:4"},
    ]  # fmt: skip


def test_the_hash_follows_contents_and_keys_but_not_names(tmp_path: Path) -> None:
    for name, content in {"a.txt": "12", "b.txt": "3", "c.txt": "1", "d.txt": "23", "e.txt": "12"}.items():
        (tmp_path / name).write_text(content)

    def digest(*names: str, caption: str | None = None, longest: int = 9) -> str:
        return hash_corpus([tmp_path / f"{name}.txt" for name in names], Keys(caption), longest)

    assert digest("a", "b") == digest("e", "b")
    others = [digest("a", "b"), digest("c", "d"), digest("b", "a"), digest("a", "b", caption="x")]
    assert len({*others, digest("a", "b", longest=8)}) == 5


def test_a_corpus_without_captions(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"id": 1, "label": "x"}), encoding="utf-8")
    written = read(tmp_path / "work", path)
    with pytest.raises(RetrievalError, match="holds no captions. Given: .*c.jsonl with 1 records"):
        refuse_empty([path], written)
