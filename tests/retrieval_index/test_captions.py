"""Reading caption files: formats, what counts as the same caption, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retrieval_index.captions import hash_files, normalise, read_corpus
from retrieval_index.errors import RetrievalError


def write(path: Path, rows: list[Any]) -> Path:
    lines = path.suffix == ".jsonl"
    text = "\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A  red\tcar ", "a red car"),
        ("\uff21 \uff52\uff45\uff44 car", "a red car"),  # full-width letters
        ("\ufb01sh", "FISH"),  # the ligature fi
        ("STRASSE", "stra\u00dfe"),
        ("a\u00a0b", "a b"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_normalise_joins(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


def test_normalise_keeps_apart_what_differs() -> None:
    assert len({normalise(text) for text in ("a cat", "a cat.", "acat", "a cats")}) == 4


def test_text_file_counts_and_first_spelling(tmp_path: Path) -> None:
    file = tmp_path / "c.txt"
    file.write_text("A red  car\n\nTwo dogs\n  a RED car \n\u00a0\nA cat\n", encoding="utf-8")
    corpus = read_corpus([file])
    assert corpus.texts == ("A red car", "Two dogs", "A cat")
    assert corpus.ids == (("c.txt:1", "c.txt:4"), ("c.txt:3",), ("c.txt:6",))
    assert (corpus.read, corpus.duplicates, corpus.without_caption) == (4, 1, 0)


def test_json_lines_keys_ids_and_missing_captions(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "caption": "one"},
        {"text": "two"},
        {"id": "x", "caption": " "},
        {"id": "y"},
        {"id": "z", "text": "ONE"},
    ]
    corpus = read_corpus([write(tmp_path / "c.jsonl", rows)])
    assert corpus.texts == ("one", "two")
    assert corpus.ids == (("7", "z"), ("c.jsonl:2",))
    assert (corpus.read, corpus.duplicates, corpus.without_caption) == (5, 1, 2)


def test_llava_json_takes_the_single_answer_or_the_caption(tmp_path: Path) -> None:
    def turns(*values: str) -> list[dict[str, str]]:
        return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]

    rows = [
        {"id": "a", "image": "a.png", "conversations": turns("<image>", "a dog")},
        {"id": "b", "image": "b.png", "conversations": turns("<image>", "yes", "and?", "no"), "caption": "a cat"},
        {"id": "c", "image": "c.png", "conversations": turns("<image>", "yes", "and?", "no")},
    ]
    corpus = read_corpus([write(tmp_path / "c.json", rows)])
    assert corpus.texts == ("a dog", "a cat")
    assert corpus.ids == (("a",), ("b",))
    assert corpus.without_caption == 1


def test_several_files_are_one_corpus(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [{"id": "1", "caption": "one"}])
    second = write(tmp_path / "b.json", [{"id": "2", "text": "One"}, {"id": "3", "text": "three"}])
    corpus = read_corpus([first, second])
    assert corpus.ids == (("1", "2"), ("3",))


def test_hash_follows_bytes_and_borders_not_names(tmp_path: Path) -> None:
    for name, text in {"a": "12", "b": "3", "c": "1", "d": "23", "e": "12"}.items():
        (tmp_path / name).write_text(text)
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    assert hash_files([a, b]) == hash_files([e, b])
    assert len({hash_files([a, b]), hash_files([c, d]), hash_files([b, a])}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", b"\n \n", "holds no captions"),
        ("c.jsonl", b'{"id": 1, "label": "x"}', "holds no captions"),
        ("c.jsonl", b'{"caption": "x"}\n{', r"not JSON. Given: .*c.jsonl:2"),
        ("c.jsonl", b'"x"', "must be a JSON object"),
        ("c.json", b'{"caption": "x"}', "must hold a list"),
        ("c.json", b"[", "not JSON"),
        ("c.txt", b"\xff\xfe", "not UTF-8"),
        ("c.csv", b"caption\nx", r"Allowed: .txt, .jsonl, .json"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RetrievalError, match=message):
        read_corpus([tmp_path / name])


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="does not exist. Given: .*none.txt"):
        read_corpus([tmp_path / "none.txt"])
