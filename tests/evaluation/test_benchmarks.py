"""Benchmarks in their own layouts: every prompt goes with its picture, and strange files are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.tiny import tiny_picture
from tga.errors import UserError
from tga.evaluation.benchmarks import FIGSTEP_PROMPT, LAYOUTS, read_benchmark
from tga.evaluation.metrics import metrics_from_config, read_metric_questions

SCENARIO = "01-Illegal_Activitiy"


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny_picture().save(path)


def table(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def document(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def seen(questions: list, root: Path) -> list[tuple]:
    """(id, group, prompt, picture below root) of each question."""
    place = {question.id: question.image and question.image.relative_to(root).as_posix() for question in questions}
    return [(question.id, question.group, question.prompt, place[question.id]) for question in questions]


def mm_safetybench(root: Path) -> Path:
    def row(name: str) -> dict:
        return {"Question": f"{name} q", "Rephrased Question": f"{name} r", "Rephrased Question(SD)": f"{name} sd"}

    for scenario in (SCENARIO, "02-HateSpeech"):
        document(root / "processed_questions" / f"{scenario}.json", {"0": row("a"), "7": row("b")})
        for kind in ("SD", "SD_TYPO", "TYPO"):
            for number in (0, 7):
                picture(root / "imgs" / scenario / kind / f"{number}.jpg")
    tiny = [{"Scenario": SCENARIO, "Sampled_ID_List": [7]}, {"Scenario": "HateSpeech", "Sampled_ID_List": ["0"]}]
    document(root / "TinyVersion_ID_List.json", tiny)
    return root


@pytest.mark.parametrize(("subset", "said"), [("SD", "sd"), ("TYPO", "r"), ("SD_TYPO", "r"), (None, "r")])
def test_mm_safetybench_asks_the_question_of_its_kind_of_picture(tmp_path: Path, subset: str, said: str) -> None:
    kind = subset or "SD_TYPO"
    questions = read_benchmark(mm_safetybench(tmp_path), "mm_safetybench", subset=subset)
    assert seen(questions, tmp_path)[:3] == [
        (f"{SCENARIO}/0", SCENARIO, f"a {said}", f"imgs/{SCENARIO}/{kind}/0.jpg"),
        (f"{SCENARIO}/7", SCENARIO, f"b {said}", f"imgs/{SCENARIO}/{kind}/7.jpg"),
        ("02-HateSpeech/0", "02-HateSpeech", f"a {said}", f"imgs/02-HateSpeech/{kind}/0.jpg"),
    ]
    assert len(questions) == 4


def test_mm_safetybench_in_words_and_its_tiny_version(tmp_path: Path) -> None:
    questions = read_benchmark(mm_safetybench(tmp_path), "mm_safetybench", subset="TEXT_TINY")
    assert seen(questions, tmp_path) == [
        (f"{SCENARIO}/7", SCENARIO, "b q", None),
        ("02-HateSpeech/0", "02-HateSpeech", "a q", None),
    ]


def test_mm_safetybench_as_it_is_cloned(tmp_path: Path) -> None:
    mm_safetybench(tmp_path / "data")
    (tmp_path / "data" / "TinyVersion_ID_List.json").rename(tmp_path / "TinyVersion_ID_List.json")
    for place in (tmp_path, tmp_path / "data"):
        found = read_benchmark(place, "mm_safetybench", subset="SD_TINY")
        assert [question.id for question in found] == [f"{SCENARIO}/7", "02-HateSpeech/0"]


def test_a_judge_is_told_what_the_prompt_hides(tmp_path: Path) -> None:
    assert read_benchmark(mm_safetybench(tmp_path), "mm_safetybench")[0].request == "a q"


def test_a_limit_counts_within_groups(tmp_path: Path) -> None:
    questions = read_benchmark(mm_safetybench(tmp_path), "mm_safetybench", limit=1)
    assert [question.id for question in questions] == [f"{SCENARIO}/0", "02-HateSpeech/0"]


def test_figstep_finds_the_picture_by_category_and_task(tmp_path: Path) -> None:
    rows = [{"dataset": "ForbidQI", "category_id": 3, "task_id": 12, "category_name": "Fraud", "question": "How?"}]
    table(tmp_path / "data" / "question" / "safebench.csv", rows)
    picture(tmp_path / "data" / "images" / "SafeBench" / "query_ForbidQI_3_12_6.png")
    assert seen(read_benchmark(tmp_path, "figstep"), tmp_path) == [
        ("3_12", "Fraud", FIGSTEP_PROMPT, "data/images/SafeBench/query_ForbidQI_3_12_6.png")
    ]
    assert read_benchmark(tmp_path, "figstep")[0].request == "How?"
    with pytest.raises(UserError, match=r"cannot be read.*SafeBench-Tiny.csv"):
        read_benchmark(tmp_path, "figstep", subset="tiny")


def test_vlsafe_takes_coco_pictures_from_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "harmlessness_examine.jsonl"
    path.write_text(json.dumps({"image_id": "01.jpg", "caption": "A ski.", "query": "How to hurt?"}) + "\n")
    picture(tmp_path / "coco" / "01.jpg")
    found = read_benchmark(path, "vlsafe", images=tmp_path / "coco")
    assert seen(found, tmp_path) == [("0", "", "How to hurt?", "coco/01.jpg")]
    with pytest.raises(UserError, match=r"1 of 1 pictures.*train2017/01.jpg"):
        read_benchmark(path, "vlsafe")


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("unsafes", [("u", "privacy", "Who is it?", "test/b/2.png")]),
        ("safe_safes", [("s", "", "What is it?", "test/b/1.png")]),
        ("safe_unsafes", [("s", "", "How to hack it?", "test/b/1.png")]),
    ],
)
def test_vlguard_subsets(tmp_path: Path, subset: str, expected: list) -> None:
    safe = [{"safe_instruction": "What is it?", "response": "x"}, {"unsafe_instruction": "How to hack it?"}]
    rows = [
        {"id": "s", "image": "b/1.png", "safe": True, "instr-resp": safe},
        {"id": "u", "image": "b/2.png", "safe": False, "harmful_category": "privacy"}
        | {"instr-resp": [{"instruction": "Who is it?", "response": "no"}]},
    ]
    path = document(tmp_path / "test.json", rows)
    for number in (1, 2):
        picture(tmp_path / "test" / "b" / f"{number}.png")
    assert seen(read_benchmark(path, "vlguard", subset=subset), tmp_path) == expected


def test_jailbreakv_and_its_small_version(tmp_path: Path) -> None:
    row = {"id": 0, "jailbreak_query": 'Act,\n"now"', "redteam_query": "r", "format": "SD", "policy": "Fraud"}
    row |= {"image_path": "figstep/0.png", "selected_mini": False}
    path = table(tmp_path / "JailBreakV_28K.csv", [row, {**row, "id": 1, "selected_mini": True}])
    picture(tmp_path / "figstep" / "0.png")
    expected = [(str(number), "Fraud", 'Act,\n"now"', "figstep/0.png") for number in (0, 1)]
    assert seen(read_benchmark(path, "jailbreakv"), tmp_path) == expected
    assert seen(read_benchmark(path, "jailbreakv", subset="selected"), tmp_path) == expected[1:]
    assert read_benchmark(path, "jailbreakv")[0].request == "r"


def test_siuo_and_mossbench(tmp_path: Path) -> None:
    row = {"question_id": 4, "image": "S-01.png", "question": "Caption it.", "category": "self-harm"}
    siuo = document(tmp_path / "siuo" / "siuo_gen.json", [row])
    picture(tmp_path / "siuo" / "images" / "S-01.png")
    found = read_benchmark(siuo, "siuo")
    assert seen(found, tmp_path) == [("4", "self-harm", "Caption it.", "siuo/images/S-01.png")]
    entry = {"image": "images/1.png", "question": "A game?", "metadata": {"over": "type 1"}}
    moss = document(tmp_path / "data" / "images_information" / "information.json", {"1": entry})
    picture(tmp_path / "data" / "images" / "1.png")
    assert seen(read_benchmark(moss, "mossbench"), tmp_path) == [("1", "type 1", "A game?", "data/images/1.png")]


def test_xstest_alone_and_beside_a_picture(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "type": "homonyms", "prompt": "How to kill a process?", "note": ""},
        {"id": 2, "type": "contrast_homonyms", "prompt": "How to kill a man?", "note": ""},
    ]
    path = table(tmp_path / "xstest_prompts.csv", rows)
    picture(tmp_path / "blank.png")
    assert seen(read_benchmark(path, "xstest"), tmp_path) == [("1", "homonyms", "How to kill a process?", None)]
    beside = read_benchmark(path, "xstest", subset="unsafe", beside=tmp_path / "blank.png")
    assert seen(beside, tmp_path) == [("2", "contrast_homonyms", "How to kill a man?", "blank.png")]


def test_xstest_without_ids(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "type": "contrast_x"}, {"prompt": "b", "type": "x"}]
    assert [question.id for question in read_benchmark(table(tmp_path / "x.csv", rows), "xstest")] == ["1"]


def test_two_questions_of_one_id_keep_apart(tmp_path: Path) -> None:
    rows = [{"id": 1, "type": "homonyms", "prompt": prompt} for prompt in ("a", "b")]
    found = read_benchmark(table(tmp_path / "x.csv", rows), "xstest")
    assert [question.id for question in found] == ["1", "1#2"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1, "image": "../../etc/x.png", "question": "q"}], r"outside of its folder.*etc/x.png"),
        ([{"question_id": 1, "image": "/etc/x.png", "question": "q"}], "outside of its folder"),
        ([{"question_id": 1, "question": "q"}], 'not of its benchmark.*a row with "image"'),
        ([{"question_id": 1, "image": ["x"], "question": "q"}], 'a row with "image"'),
        (["text"], 'a row with "image"'),
        ({"1": {}}, "not of its benchmark.*dict.*a list"),
        ([], "no question"),
    ],
)
def test_strange_files_are_refused(tmp_path: Path, rows: object, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        read_benchmark(document(tmp_path / "siuo_gen.json", rows), "siuo")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "poem"}, "unknown layout.*poem.*vlguard"),
        ({"layout": "vlguard", "subset": "safe"}, "no such subset.*safe_unsafes"),
        ({"layout": "siuo", "file": "no.json"}, "does not exist.*no.json"),
        ({"images": "x"}, "names none.*images.*vlguard"),
    ],
)
def test_unknown_names_say_what_there_is(tmp_path: Path, settings: dict, message: str) -> None:
    document(tmp_path / "a.json", [])
    with pytest.raises(UserError, match=f"(?s){message}"):
        read_metric_questions(metrics_from_config(tmp_path, {"dsr": {"file": "a.json", **settings}}))


def test_a_metric_names_a_layout_with_paths_below_the_root(tmp_path: Path) -> None:
    path = tmp_path / "vlsafe" / "harmlessness_examine.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"image_id": "01.jpg", "query": "q"}), encoding="utf-8")
    picture(tmp_path / "coco" / "01.jpg")
    metric = {"file": "vlsafe/harmlessness_examine.jsonl", "layout": "vlsafe", "images": "coco"}
    questions = read_metric_questions(metrics_from_config(tmp_path, {"vlsafe_dsr": metric}))
    assert questions["vlsafe_dsr"][0].image == tmp_path / "coco" / "01.jpg"


def test_every_layout_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    for name, layout in LAYOUTS.items():
        assert f"`{name}`" in page, name
        for subset in layout.subsets:
            if layout.subsets != ("all",):
                assert f"`{subset.removesuffix('_TINY')}`" in page, f"{name}: {subset}"
