"""Every format of caption files, which files are found, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.readers import READERS, Keys, find_files, hash_content, read_records

ROWS = [("7", "A red car"), ("8", "Two dogs"), ("9", None)]


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write(directory: Path, suffix: str) -> Path:
    """ROWS in the format of a suffix; a format without a place for the third row's missing caption leaves it empty."""
    path = directory / f"c{suffix}"
    records = [{"id": key, "caption": text} for key, text in ROWS]
    if suffix == ".txt":
        path.write_text("A red car\nTwo dogs\n \n", encoding="utf-8")
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([("id", "caption"), *ROWS])
    elif suffix == ".parquet":
        pq.write_table(pa.table({"id": [7, 8, 9], "caption": [text for _, text in ROWS]}), path)
    elif suffix == ".tar":
        members = {f"{key}.txt": text.encode() for key, text in ROWS if text} | {"9.jpg": b"\xff\xd8picture"}
        write_tar(path, members)
    return path


@pytest.mark.parametrize("suffix", READERS)
def test_every_format_gives_the_same_records(tmp_path: Path, suffix: str) -> None:
    found = [(key, text or None) for key, text in read_records(write(tmp_path, suffix), Keys())]
    expected = ROWS if suffix != ".txt" else [("c.txt:1", "A red car"), ("c.txt:2", "Two dogs"), ("c.txt:3", None)]
    assert [(key, (text.strip() if text else None) or None) for key, text in found] == expected


def test_ids_fall_back_to_the_place(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n\n{"key": "k", "caption": "two"}', encoding="utf-8")
    (tmp_path / "c.csv").write_text("text\nthree\n", encoding="utf-8")
    pq.write_table(pa.table({"TEXT": ["four"]}), tmp_path / "c.parquet")
    found = [record for name in ("c.jsonl", "c.csv", "c.parquet") for record in read_records(tmp_path / name, Keys())]
    assert found == [("c.jsonl:1", "one"), ("k", "two"), ("c.csv:1", "three"), ("c.parquet:0", "four")]


def test_llava_json_takes_the_single_answer_or_the_caption(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "image": "a.png", "conversations": turns("<image>", "a dog")},
        {"id": "b", "image": "b.png", "conversations": turns("<image>", "yes", "and?", "no"), "caption": "a cat"},
        {"id": "c", "image": "c.png", "conversations": turns("<image>", "yes", "and?", "no")},
    ]
    (tmp_path / "c.json").write_text(json.dumps(rows), encoding="utf-8")
    assert list(read_records(tmp_path / "c.json", Keys())) == [("a", "a dog"), ("b", "a cat"), ("c", None)]


def test_other_keys_and_columns(tmp_path: Path) -> None:
    keys = Keys(caption="alt", id="url")
    (tmp_path / "c.jsonl").write_text(
        '{"alt": "one", "url": "u", "caption": "no"}\n{"caption": "no"}', encoding="utf-8"
    )
    pq.write_table(pa.table({"caption": ["no"], "alt": ["two"], "url": ["v"]}), tmp_path / "c.parquet")
    assert list(read_records(tmp_path / "c.jsonl", keys)) == [("u", "one"), ("c.jsonl:2", None)]
    assert list(read_records(tmp_path / "c.parquet", keys)) == [("v", "two")]
    with pytest.raises(RetrievalError, match="no column of captions. Given: .*columns text.*index.caption_key=COLUMN"):
        (tmp_path / "c.csv").write_text("text\nx", encoding="utf-8")
        list(read_records(tmp_path / "c.csv", keys))
    with pytest.raises(RetrievalError, match="no column of this name"):
        list(read_records(tmp_path / "c.csv", Keys(caption="text", id="url")))


def test_tables_without_a_line_of_names(tmp_path: Path) -> None:
    (tmp_path / "cc3m.tsv").write_text('a "dog" , running\thttp://a\n\na cat\thttp://b\n', encoding="utf-8")
    (tmp_path / "cc12m.csv").write_text('http://a,"a dog, running"\n,a cat\n', encoding="utf-8")
    assert list(read_records(tmp_path / "cc3m.tsv", Keys(caption=1))) == [
        ("cc3m.tsv:1", 'a "dog" , running'),
        ("cc3m.tsv:3", "a cat"),
    ]
    assert list(read_records(tmp_path / "cc12m.csv", Keys(caption=2, id=1))) == [
        ("http://a", "a dog, running"),
        ("cc12m.csv:2", "a cat"),
    ]
    with pytest.raises(RetrievalError, match=r"fewer columns.*cc3m.tsv line 1: 2 columns"):
        list(read_records(tmp_path / "cc3m.tsv", Keys(caption=3)))


@pytest.mark.parametrize(("name", "keys"), [("c.jsonl", Keys(1)), ("c.tsv", Keys(1, "id")), ("c.tsv", Keys("text", 1))])
def test_numbers_and_names_of_columns_do_not_mix(tmp_path: Path, name: str, keys: Keys) -> None:
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(RetrievalError, match="without a line of names.*caption_key="):
        list(read_records(tmp_path / name, keys))


def test_a_web_dataset_sample_keeps_its_caption_in_text_or_json(tmp_path: Path) -> None:
    members = {
        "0/a.jpg": b"\xff\xd8", "0/a.txt": b"one", "0/a.json": b'{"caption": "not this one"}',
        "0/b.json": b'{"caption": "two"}', "0/b.cls": b"3",
        "0/c.jpg": b"\xff\xd8",
    }  # fmt: skip
    path = write_tar(tmp_path / "c.tar", members)
    assert list(read_records(path, Keys())) == [("0/a", "one"), ("0/b", "two"), ("0/c", None)]


def test_an_archive_is_hashed_without_its_pictures(tmp_path: Path) -> None:
    def digest(name: str, picture: bytes, text: bytes) -> str:
        return hash_content(write_tar(tmp_path / name, {"a.jpg": picture, "a.txt": text}))

    first = digest("1.tar", b"picture", b"caption")
    assert digest("2.tar", b"another", b"caption") == first
    assert digest("3.tar", b"picture", b"captions") != first


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.jsonl", "b/picture.jpg", "b/.hidden.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [path.relative_to(tmp_path).as_posix() for path in find_files([tmp_path / "b", tmp_path / "*.txt"])]
    assert names == ["b/1.jsonl", "b/2.txt", "a.txt"]
    assert len(find_files([tmp_path / "a.txt", str(tmp_path / "?.txt")])) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"caption": "x"}\n{', r"not JSON. Given: .*c.jsonl:2"),
        ("c.jsonl", b'"x"', "must be a JSON object"),
        ("c.json", b'{"caption": "x"}', "must hold a list"),
        ("c.json", b"[", "not JSON"),
        ("c.txt", b"\xff\xfe", "not UTF-8"),
        ("c.csv", b"caption\n\xff", "not UTF-8"),
        ("c.csv", b'caption\n"a" b', "not a table"),
        ("c.parquet", b"PAR1", "cannot be read"),
        ("c.tar", b"no archive", "cannot be read"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RetrievalError, match=message):
        list(read_records(tmp_path / name, Keys()))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "No caption file was given"),
        (["none.txt"], "does not exist. Given: .*none.txt"),
        (["c.doc"], "Allowed: .txt, .jsonl, .json, .csv"),
        (["*.txt"], "matches no file"),
        (["empty"], "holds no caption file"),
    ],
)
def test_what_is_not_there(tmp_path: Path, paths: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetrievalError, match=message):
        find_files([tmp_path / path for path in paths])


def test_a_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    """Captions of the web are written without quoting; an opening quote must not swallow the rows behind it."""
    rows = ['a\t"Best of 2012 party', "b\tnice city", 'c\t"Blue" boat', 'd\the said "wow"']
    (tmp_path / "c.tsv").write_text("\n".join(["id\tcaption", *rows]), encoding="utf-8")
    assert list(read_records(tmp_path / "c.tsv", Keys())) == [tuple(row.split("\t")) for row in rows]
    (tmp_path / "c.csv").write_text('id,caption\na,"one"\nb,"two" boats\n', encoding="utf-8")
    with pytest.raises(RetrievalError, match=r"not a table.*c\.csv line 3"):
        list(read_records(tmp_path / "c.csv", Keys()))
