"""What a bad list leaves out, what stops a run, and samples that many processes share."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_picture
from tga.data.llava_json import LlavaJson
from tga.data.loading import Loaded, load_samples
from tga.data.packed import PackedSamples
from tga.data.sample import Sample, Turn
from tga.errors import UserError


def record(identifier: str, image: Any = "a.png", answer: str = "A cat.", question: str = "<image>") -> dict[str, Any]:
    found = {
        "id": identifier,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }
    return found if image is None else {**found, "image": image}


def load(root: Path, records: list[dict[str, Any]], bad: list[dict[str, Any]] | None = None, **options: Any) -> Loaded:
    tiny_picture().save(root / "a.png")
    (root / "data.json").write_text(json.dumps(records))
    if bad is not None:
        (root / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
        options["bad_list"] = root / "bad.jsonl"
    return load_samples(LlavaJson(root / "data.json", root), **options)


def test_listed_records_are_left_out_and_counted(tmp_path: Path) -> None:
    records = [record("a"), record("b", "gone.png"), record("c"), record("d", "gone.png"), record("e", answer=" ")]
    bad = [
        {"row": 1, "id": "b", "problem": "missing_image", "detail": "gone.png"},
        {"row": 3, "id": "d", "problem": "missing_image", "detail": "gone.png"},
        {"row": 4, "id": "e", "problem": "empty_caption", "detail": ""},
    ]
    loaded = load(tmp_path, records, bad, max_bad_fraction=0.6)
    assert [sample.id for sample in loaded.samples] == ["a", "c"]
    assert loaded.skipped == {"missing_image": 2, "empty_caption": 1}
    assert load(tmp_path, records, bad, max_bad_fraction=0.5, limit=2).skipped == {"missing_image": 1}
    with pytest.raises(UserError, match=r"3 of 5 records.*empty_caption: 1, missing_image: 2.*0\.5.*max_bad_fraction"):
        load(tmp_path, records, bad, max_bad_fraction=0.5)


def test_what_is_not_listed_stops(tmp_path: Path) -> None:
    records = [record("a"), record("b", "gone.png"), record("c", "lost.png"), {"id": "d", "conversations": []}]
    bad = [{"row": 1, "id": "b", "problem": "missing_image", "detail": ""}]
    with pytest.raises(UserError, match=r"1 pictures are missing .*1 others.*lost\.png.*tga-verify-data"):
        load(tmp_path, records, bad, max_bad_fraction=1.0)


def test_a_list_of_another_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another data set.*row 0 is 'x' in the list and 'a' in the data"):
        load(tmp_path, [record("a")], [{"row": 0, "id": "x", "problem": "missing_image", "detail": ""}])
    with pytest.raises(UserError, match="not a bad list"):
        load(tmp_path, [record("a")], [{"line": 0}])
    with pytest.raises(UserError, match="no bad list"):
        load(tmp_path, [record("a")], bad_list=tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no samples"):
        bad = [{"row": 0, "id": "a", "problem": "missing_image", "detail": ""}]
        load(tmp_path, [record("a")], bad, max_bad_fraction=1.0)


def test_ids_that_come_again_are_numbered_where_asked(tmp_path: Path) -> None:
    """LLaVA's 665K takes its ids from COCO, whose pictures stand in several of its parts."""
    records = [record("a"), record("b"), record("a"), record("a")]
    loaded = load(tmp_path, records, duplicate_ids="number")
    assert [sample.id for sample in loaded.samples] == ["a", "b", "a#2", "a#3"]
    bad = [{"row": 2, "id": "a#2", "problem": "empty_caption", "detail": ""}]
    left = load(tmp_path, records, bad, duplicate_ids="number", max_bad_fraction=0.5)
    assert [sample.id for sample in left.samples] == ["a", "b", "a#3"]
    with pytest.raises(UserError, match="data.duplicate_ids=number"):
        load(tmp_path, records)
    with pytest.raises(UserError, match="refuse, number"):
        load(tmp_path, records, duplicate_ids="drop")


def test_several_pictures_in_a_record(tmp_path: Path) -> None:
    tiny_picture(2).save(tmp_path / "b.png")
    two = record("a", ["a.png", "b.png"], question="Is <image> like <image>?")
    (sample,) = load(tmp_path, [two]).samples
    assert sample.images == (tmp_path / "a.png", tmp_path / "b.png")
    assert sample.turns[0].text == "Is <image> like <image>?"
    for wrong in (record("a", ["a.png", "b.png"]), record("a", [7]), record("a", None)):
        with pytest.raises(UserError, match="markers|no path"):
            load(tmp_path, [wrong])


def test_a_marker_in_an_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="marker in an answer"):
        load(tmp_path, [record("a", answer="<image>", question="What?")])


def read_ids(samples: PackedSamples) -> list[str]:
    return [sample.id for sample in samples]


def test_packed_samples_are_a_sequence_that_other_processes_read() -> None:
    turns = (Turn("user", "12345"), Turn("assistant", "678"))
    made = [Sample(str(i), (Path("a.png"),) * (i % 3), turns, None) for i in range(9)]
    packed = PackedSamples(iter(made))
    assert list(packed) == made and packed[2:4] == made[2:4] and packed[-1] == made[-1] and len(packed) == 9
    assert packed.lengths.tolist() == [8] * 9 and packed.pictures.tolist() == [0, 1, 2] * 3
    with pytest.raises(IndexError):
        packed[9]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_ids, (packed,)) == [str(i) for i in range(9)]
    path = Path(packed._path)
    assert path.is_file()  # the worker that ended has not removed it
    del packed
    assert not path.exists()
