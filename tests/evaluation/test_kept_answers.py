"""Answers that outlive a killed evaluation: read back, never from another evaluation, and never half a batch."""

from __future__ import annotations

from pathlib import Path

import pytest

import tga.evaluation.generate
from tests.tiny import tiny_llava, tiny_picture
from tga.evaluation.generate import answer_questions
from tga.evaluation.kept_answers import KeptAnswers, asked_of
from tga.evaluation.questions import Question
from tga.vlm.families import family_of

IDENTITY = {"model": "a", "stamp": [["x.ckpt", 3, 4]]}


def questions(count: int = 5, folder: Path | None = None) -> list[Question]:
    asked = []
    for number in range(count):
        picture = None
        if folder is not None:
            tiny_picture(number).save(picture := folder / f"{number}.png")
        asked.append(Question(str(number), "", f"How many cats {number}?", "chat", picture))
    return asked


def test_answers_come_back(tmp_path: Path) -> None:
    KeptAnswers(tmp_path / "a" / "m.jsonl", IDENTITY).of(asked_of(questions())).keep({1: "two\nlines", 0: "é"})
    again = KeptAnswers(tmp_path / "a" / "m.jsonl", dict(reversed(IDENTITY.items())))
    assert len(again) == 2 and again.of(asked_of(questions())).known == {0: "é", 1: "two\nlines"}
    assert again.of(asked_of(questions(4))).known == {}  # other questions


def test_answers_of_something_else_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    KeptAnswers(path, IDENTITY).of(asked_of(questions())).keep({0: "x"})
    other = KeptAnswers(path, IDENTITY | {"model": "b"})
    assert len(other) == 0
    assert len(KeptAnswers(path, IDENTITY)) == 0


def test_answers_to_another_picture_are_not_taken(tmp_path: Path) -> None:
    asked = questions(2, tmp_path)
    KeptAnswers(tmp_path / "m.jsonl", IDENTITY).of(asked_of(asked)).keep({0: "x"})
    assert KeptAnswers(tmp_path / "m.jsonl", IDENTITY).of(asked_of(asked)).known == {0: "x"}
    tiny_picture(9, size=44).save(tmp_path / "1.png")
    assert KeptAnswers(tmp_path / "m.jsonl", IDENTITY).of(asked_of(asked)).known == {}


@pytest.mark.parametrize("row", ['{"row": null}', "[1]", '{"asked": "a", "row": 0, "answer": 5}'])
def test_strange_lines_end_what_is_read(tmp_path: Path, row: str) -> None:
    path = tmp_path / "m.jsonl"
    KeptAnswers(path, IDENTITY).of(asked_of(questions())).keep({0: "x"})
    path.write_text(path.read_text() + row + "\n")
    assert KeptAnswers(path, IDENTITY).of(asked_of(questions())).known == {0: "x"}


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_cut_off_is_dropped_and_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.jsonl"
    KeptAnswers(path, IDENTITY).of(asked_of(questions())).keep({0: "x", 1: "y"})
    path.write_bytes(path.read_bytes()[:-cut])
    again = KeptAnswers(path, IDENTITY)
    assert again.of(asked_of(questions())).known == {0: "x"}
    again.of(asked_of(questions())).keep({1: "z"})
    assert KeptAnswers(path, IDENTITY).of(asked_of(questions())).known == {0: "x", 1: "z"}


def test_a_stopped_evaluation_answers_as_one_that_nobody_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_llava()
    asked = questions(5, tmp_path)
    settings = {"batch_size": 2, "max_new_tokens": 4, "show_progress": False}
    whole = answer_questions(model, processor, family_of(model), asked, **settings)
    kept = KeptAnswers(tmp_path / "m.jsonl", IDENTITY).of(asked_of(asked))
    real, batches = tga.evaluation.generate.greedy_tokens, []

    def stopping(*arguments: object, **options: object) -> list[list[int]]:
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(tga.evaluation.generate, "greedy_tokens", stopping)
    with pytest.raises(KeyboardInterrupt):
        answer_questions(model, processor, family_of(model), asked, kept=kept, **settings)
    again = KeptAnswers(tmp_path / "m.jsonl", IDENTITY).of(asked_of(asked))
    assert len(again.known) == 4
    batches.clear()
    assert answer_questions(model, processor, family_of(model), asked, kept=again, **settings) == whole
    assert len(batches) == 1  # the third of three
