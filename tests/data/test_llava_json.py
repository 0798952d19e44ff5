"""LLaVA JSON as published: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import tiny_picture
from tga.data.llava_json import load_llava_json
from tga.data.loading import with_neighbours
from tga.data.sample import Turn
from tga.errors import UserError


def record(identifier: str, *values: str, image: str | None = "a.png", **more: Any) -> dict[str, Any]:
    """A record whose utterances alternate between human and gpt."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    found = {"id": identifier, "conversations": turns, **more}
    return found if image is None else {**found, "image": image}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    tiny_picture().save(tmp_path / "a.png")
    tiny_picture().save(tmp_path / "sub" / "b.png")
    return tmp_path


def load(root: Path, *records: dict[str, Any], **options: Any) -> list[Any]:
    (root / "data.json").write_text(json.dumps(records))
    return load_llava_json(root / "data.json", root, **options)


def test_a_record_becomes_a_sample(root: Path) -> None:
    before, after, chat, text = load(
        root,
        record("1", "<image>\nDescribe.", "A cat."),
        record("2", "Describe.\n<image>", "A dog.", image="sub/b.png"),
        record("3", "<image>\nWhat?", "A cup.", "Where?", "There.", caption="A cup there."),
        record("4", "Two and two?", "Four.", image=None),
    )
    assert before.turns == (Turn("user", "Describe."), Turn("assistant", "A cat."))
    assert (before.id, before.images, before.caption, before.neighbours) == ("1", (root / "a.png",), "A cat.", ())
    assert after.turns[0] == Turn("user", "Describe.") and after.images == (root / "sub" / "b.png",)
    assert len(chat.turns) == 4 and chat.caption == "A cup there."
    assert text.images == () and text.caption is None


def test_a_conversation_without_a_caption_has_none(root: Path) -> None:
    assert load(root, record("1", "<image>What?", "A cup.", "Where?", "There."))[0].caption is None


def test_an_answer_without_its_question_and_a_question_without_its_answer_are_left_out(root: Path) -> None:
    """Conversations that were cut out of longer ones, as some of the 665K."""
    whole = record("1", "<image>\nWhat?", "A car.", "Old?", "No.")
    cut = {**whole, "id": "2", "conversations": [{"from": "gpt", "value": "Hello."}, *whole["conversations"]]}
    cut["conversations"].append({"from": "human", "value": "Thanks"})
    one, two = load(root, whole, cut)
    assert two.turns == one.turns and len(one.turns) == 4 and two.images == one.images
    for lone in ("gpt", "human"):
        with pytest.raises(UserError, match="does not alternate"):
            load(root, {**whole, "conversations": [{"from": lone, "value": "Hello."}]})
    twice = [whole["conversations"][0], *whole["conversations"]]
    with pytest.raises(UserError, match="does not alternate"):
        load(root, {**whole, "conversations": twice})


def test_limit_keeps_the_first(root: Path) -> None:
    assert [s.id for s in load(root, *[record(str(i), "<image>", "A.") for i in range(5)], limit=2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (
            [record("1", "<image>", "A.", image="no.png"), record("2", "<image>", "A.", image="non/e.png")],
            "2 pictures .*no.png",
        ),
        ([record("1", "<image>", "A.", image="../a.png")], r"1 pictures .* outside .*\.\./a\.png"),
        ([record("1", "<image>", "A.", image="/etc/a.png")], "outside"),
        ([record("1", "<image>", "A.", image=5)], "has an image that is no path"),
        ([record("1", "<image>", "A."), record("1", "<image>", "B.")], "more than one record.*'1'"),
        ([record("1", "<image>")], "does not alternate.*id 1"),
        ([record("1", "<image><image>", "A.")], "2 image markers and 1 pictures"),
        ([record("1", "<image>", "A.", image=None)], "1 image markers and 0 pictures"),
        ([{"id": "1", "conversations": [{"who": "human"}]}], "not of the form"),
        ([{"conversations": []}], "have no id"),
        ([], "not a list of records"),
    ],
)
def test_what_is_wrong_is_said(records: list[dict[str, Any]], said: str, root: Path) -> None:
    with pytest.raises(UserError, match=said):
        load(root, *records)


def test_no_file_and_no_json_are_said(root: Path) -> None:
    with pytest.raises(UserError, match="no data file.*none.json"):
        load_llava_json(root / "none.json", root)
    (root / "data.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_llava_json(root / "data.json", root)


def test_neighbours_are_joined_by_id(root: Path) -> None:
    table = {"id": ["2", "1"], "texts": [["b", "c", "d"], ["a"]]}
    pq.write_table(pa.table(table), root / "n.parquet")
    records = [record("1", "<image>", "A."), record("2", "<image>", "A."), record("3", "Hello?", "Yes.", image=None)]
    samples = with_neighbours(load(root, *records), root / "n.parquet", used=2)
    assert [sample.neighbours for sample in samples] == [("a",), ("b", "c"), ()]
    with pytest.raises(UserError, match="1 of 3 samples with a picture are not in the neighbours file.*'9'"):
        with_neighbours(load(root, *records, record("9", "<image>", "A.")), root / "n.parquet")
    with pytest.raises(UserError, match="no neighbours file"):
        with_neighbours(samples, root / "none.parquet")
