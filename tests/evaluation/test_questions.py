"""Question files and scene folders: what is read, and what is refused with a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import tiny_picture
from tga.errors import UserError
from tga.evaluation.questions import Question, read_questions, read_toxic_scenes


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def test_generic_rows_are_read_with_paths_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    tiny_picture().save(tmp_path / "images" / "a.png")
    rows = [
        {"id": 7, "image": "images/a.png", "prompt": "What?", "format": "plain", "group": "gun", "expected": ["a|b"]},
        {"id": "t", "prompt": "Hello", "expected": "yes", "caption": "A cup.", "toxic": "ell"},
        {"id": "u", "prompt": "gun or axe", "toxic": ["gun", "axe"], "source": "mine"},
    ]
    assert read_questions(write_rows(tmp_path / "vqa.jsonl", rows)) == [
        Question("7", "gun", "What?", "plain", tmp_path / "images" / "a.png", ("a|b",), None),
        Question("t", "", "Hello", "chat", None, ("yes",), "A cup.", ("ell",)),
        Question("u", "", "gun or axe", "chat", toxic=("gun", "axe")),
    ]


def test_limit_reads_the_first_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{"id": i, "prompt": "x"} for i in range(5)])
    assert [question.id for question in read_questions(path, limit=2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no question"),
        ([{"id": 1}], "not a question"),
        ([{"id": 1, "prompt": "x", "format": "poem"}], "unknown format.*poem.*chat"),
        ([{"id": 1, "prompt": "a gun", "toxic": ["gun", "axe"]}], "no part of its prompt.*axe"),
        ([{"id": 1, "prompt": "x"}, {"id": "1", "prompt": "y"}], "same id"),
        ([{"id": 1, "prompt": "x", "imgae": "a.png"}], r"looks misspelt.*imgae \(image\?\)"),
        ([{"id": 1, "prompt": "x", "image": 5}], "line 1 .* another kind.*'image': 5"),
        ([{"id": 1, "prompt": "x", "expected": 5, "toxic": [3]}], "'expected': 5, 'toxic': .3.*a list of texts"),
        ([{"id": 1, "prompt": "x", "caption": 5}], "another kind.*'caption': 5"),
        ([{"id": 1, "prompt": "x", "image": "q.jsonl"}], "1 of 1 pictures .*are no pictures.*q.jsonl"),
        ([{"id": 1, "prompt": "x", "image": "no.png"}, {"id": 2, "prompt": "x"}], "1 of 2 pictures.*no.png"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, rows: list[dict], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(write_rows(tmp_path / "q.jsonl", rows))


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": 1, "prompt": "x"}\n{oops\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 2 .*oops"):
        read_questions(tmp_path / "q.jsonl")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not UTF-8"):
        read_questions(tmp_path / "q.jsonl")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_questions(tmp_path / "none.jsonl")


def test_scene_folders_become_groups(tmp_path: Path) -> None:
    for name in ("gun/hard/1.png", "gun/2.JPG", "knife/3.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "knife" / "notes.txt").write_bytes(b"x")
    questions = read_toxic_scenes(tmp_path, "Describe it.")
    assert [(q.id, q.group, q.prompt, q.format) for q in questions] == [
        ("gun/2.JPG", "gun", "Describe it.", "chat"),
        ("gun/hard/1.png", "gun", "Describe it.", "chat"),
        ("knife/3.jpeg", "knife", "Describe it.", "chat"),
    ]
    assert len(read_toxic_scenes(tmp_path, "Describe it.", limit=1)) == 2


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gun").mkdir()
    with pytest.raises(UserError, match="no question"):
        read_toxic_scenes(tmp_path, "Describe it.")
