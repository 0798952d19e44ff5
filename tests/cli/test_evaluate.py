"""tga-evaluate as a user calls it: two models side by side, and one message for each mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tga.evaluation.generate
from tests.tiny import tiny_llava, tiny_llm, tiny_picture, tiny_tokenizer
from tga.cli.evaluate import main


def call(monkeypatch: pytest.MonkeyPatch, directory: Path, *arguments: str) -> int:
    """Run tga-evaluate in this process, in `directory`; its exit code."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["tga-evaluate", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A saved tiny VLM, a tiny LLM with its tokenizer, and four question rows with pictures."""
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    tiny_llm().save_pretrained(tmp_path / "llm")
    rows = []
    for i in range(4):
        tiny_picture(i).save(tmp_path / f"{i}.png")
        caption = f"A dog and {i} cats."
        rows.append({"id": i, "image": f"{i}.png", "prompt": "What?", "group": "gun", "caption": caption})
    (tmp_path / "toxic.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


METRICS = [
    "+evaluation.metrics.image_dsr={file: toxic.jsonl, by_group: true}",
    "+evaluation.metrics.cosine={file: toxic.jsonl, kind: cosine, layers: [1]}",
]


def test_models_side_by_side(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluation.root=.", *METRICS, "evaluation.max_new_tokens=4", "run_dir=out"]
    code = call(monkeypatch, world, "models={one: vlm, two: vlm}", *arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.splitlines()[-1] == f"Output directory: {world / 'out'}"
    summary = json.loads((world / "out" / "summary.json").read_text())
    assert summary["one_image_dsr_gun_n"] == 4 and summary["total_s"] > 0 and summary["peak_rss_mib"] > 0
    assert summary["one_cosine_matched_layer_1"] == summary["two_cosine_matched_layer_1"] != 0
    rows = [json.loads(line) for line in (world / "out" / "answers.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["one"] * 4 + ["two"] * 4
    assert [row["answer"] for row in rows[:4]] == [row["answer"] for row in rows[4:]]
    page = (world / "out" / "report.html").read_text()
    assert "image_dsr_gun" in page and "cosine_matched_layer_1" in page and "first answers" in page
    assert "| metric | one | two |" in (world / "out" / "table.md").read_text()


def test_a_stopped_evaluation_goes_on(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["evaluation.root=.", METRICS[0], "evaluation.max_new_tokens=4", "evaluation.batch_size=1"]
    assert call(monkeypatch, world, "models={one: vlm}", *settings, "run_dir=whole") == 0
    real, asked = tga.evaluation.generate.greedy_tokens, []

    def stopping(*arguments: object, **options: object) -> list[list[int]]:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(tga.evaluation.generate, "greedy_tokens", stopping)
    assert call(monkeypatch, world, "models={one: vlm}", *settings, "run_dir=out") == 130
    assert not (world / "out" / "answers.jsonl").exists()
    assert f"run_dir={world / 'out'}" in capsys.readouterr().out
    assert call(monkeypatch, world, "models={one: vlm}", *settings, "run_dir=out") == 0
    assert "one: 2 answers are there already" in capsys.readouterr().out
    assert len(asked) == 5  # two, the one that was stopped, and the two that were left
    assert (world / "out" / "answers.jsonl").read_text() == (world / "whole" / "answers.jsonl").read_text()
    assert not (world / "out" / "answered").exists()


def test_the_directory_of_a_training_is_left_alone(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "run" / "checkpoints").mkdir(parents=True)
    (world / "run" / "summary.json").write_text("{}")
    arguments = ["evaluation.root=.", METRICS[0], "run_dir=run"]
    assert call(monkeypatch, world, "models={one: vlm}", *arguments) == 1
    assert "is a run of tga-train" in capsys.readouterr().err
    assert (world / "run" / "summary.json").read_text() == "{}" and not (world / "run" / "config.yaml").exists()


def test_metrics_are_chosen_by_name(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gap = "+evaluation.metrics.modality_gap={file: toxic.jsonl, kind: modality_gap}"
    arguments = ["evaluation.root=.", *METRICS, gap, "metrics=[modality_gap]", "run_dir=out"]
    assert call(monkeypatch, world, "models={one: vlm, two: vlm}", *arguments) == 0
    summary = json.loads((world / "out" / "summary.json").read_text())
    assert summary["one_modality_gap_mir"] == summary["two_modality_gap_mir"]
    assert summary["one_modality_gap_fid_layer_3"] > 0 and "one_image_dsr" not in summary
    assert "| modality_gap_mir | " in (world / "out" / "table.md").read_text()


def test_one_model_has_plain_keys(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["evaluation.root=.", *METRICS, "evaluation.max_new_tokens=2", "evaluation.limit=3", "run_dir=out"]
    assert call(monkeypatch, world, "models={one: vlm}", *arguments) == 0
    summary = json.loads((world / "out" / "summary.json").read_text())
    assert summary["image_dsr_n"] == 3 and 0 <= summary["image_dsr_low"] <= summary["image_dsr"]


JUDGED = "+evaluation.metrics.asr={file: toxic.jsonl, judge: unsafe}"
TEXT_JUDGE = "evaluation.judge_model={path: llm, form: text, template: '{prompt} {answer}', unsafe: dog, safe: cat}"


def test_a_model_judges_after_the_models_have_answered(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tokenizer().save_pretrained(world / "llm")
    arguments = ["evaluation.root=.", *METRICS[:1], JUDGED, TEXT_JUDGE, "evaluation.max_new_tokens=4", "run_dir=out"]
    assert call(monkeypatch, world, "models={one: vlm, two: vlm}", *arguments) == 0
    summary = json.loads((world / "out" / "summary.json").read_text())
    rows = [json.loads(line) for line in (world / "out" / "answers.jsonl").read_text().splitlines()]
    judged = [row for row in rows if row["metric"] == "asr" and row["model"] == "one"]
    assert [row["judged"] for row in judged] == [row["unsafe"] >= 0.5 for row in judged]
    assert summary["one_asr"] == sum(row["judged"] for row in judged) / 4 == summary["two_asr"]
    assert all("unsafe" not in row for row in rows if row["metric"] == "image_dsr")
    assert "calls unsafe" in (world / "out" / "table.md").read_text()
    again = [JUDGED, "evaluation.root=.", TEXT_JUDGE.replace("unsafe: dog", "unsafe: ' dog'"), "run_dir=again"]
    assert call(monkeypatch, world, "answers=out/answers.jsonl", *again, *METRICS[:1]) == 0
    other = json.loads((world / "again" / "summary.json").read_text())
    assert other["one_image_dsr"] == summary["one_image_dsr"] and other["two_asr_n"] == 4
    new = [json.loads(line) for line in (world / "again" / "answers.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in new] == [row["answer"] for row in rows]
    assert [row["unsafe"] for row in new if "unsafe" in row] != [row["unsafe"] for row in rows if "unsafe" in row]


def test_a_judge_that_would_say_something_else_is_told_of(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_tokenizer().save_pretrained(world / "llm")
    judge = TEXT_JUDGE.replace("unsafe: dog, safe: cat", "unsafe: the dog sees a cat, safe: cats see the dogs there")
    arguments = ["evaluation.root=.", JUDGED, judge, "evaluation.max_new_tokens=2", "run_dir=out"]
    assert call(monkeypatch, world, "models={one: vlm}", *arguments) == 0
    assert "may mean nothing" in capsys.readouterr().out
    assert json.loads((world / "out" / "summary.json").read_text())["asr_mass"] < 0.1
    page = (world / "out" / "table.md").read_text()
    assert "it may mean nothing" in page and "judged by patterns" not in page


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["no model", "models={NAME: PATH"]),
        (
            ["evaluation.limt=5"],
            ["There is no such key. Given: evaluation.limt.", "To change it: evaluation.limit=VALUE"],
        ),
        (["mdls=5"], ["There is no such key. Given: mdls.", "--help"]),
        (
            ["models={a: vlm}", "evaluation.root=.", "+evaluation.metrics.x={file: .}"],
            ["needs the prompt", "prompt: TEXT"],
        ),
        (
            ["models={a: vlm}", "evaluation.root=.", "+evaluation.metrics.x={file: toxic.jsonl, prompt: What}"],
            ["has its own prompts", "toxic.jsonl"],
        ),
        (
            ["models={a: vlm}", "evaluation.root=.", "+evaluation.metrics.x={file: ., layout: xstest, beside: no.png}"],
            ["every question does not exist", "no.png", "evaluation.root"],
        ),
        (["answers=no.jsonl", JUDGED, TEXT_JUDGE, "evaluation.root=."], ["no answers of tga-evaluate", "no.jsonl"]),
        (["answers=toxic.jsonl", METRICS[0], "evaluation.root=."], ["no answers of tga-evaluate", "KeyError"]),
        (["answers=x", "models={a: vlm}", METRICS[0], "evaluation.root=."], ["without a model", "answers=null"]),
        (["answers=x", *METRICS, "evaluation.root=."], ["need the model", "cosine"]),
        (
            ["models={a: vlm}", JUDGED, "evaluation.root=.", "evaluation.judge_model.batch_size=0"],
            ["from 1", "batch_size"],
        ),
        (["models={a: vlm}", JUDGED, "evaluation.root=.", "evaluation.judge_model=null"], ["judge_model is not"]),
        (
            ["models={a: vlm}", JUDGED, "evaluation.root=."],
            ["judged by a model", "asr", "evaluation.judge_model.path=PATH"],
        ),
        (["models={a: vlm}", JUDGED, "evaluation.root=.", "evaluation.judge_model={path: no}"], ["judge: no"]),
        (
            ["models={a: vlm}", JUDGED, "evaluation.root=.", "evaluation.judge_model={path: llm, temper: 1}"],
            ["temper"],
        ),
        (["models={}"], ["no model"]),
        (["models={a: nowhere}", *METRICS, "evaluation.root=."], ["a: nowhere", "run directory"]),
        (["models={a b: vlm}", *METRICS, "evaluation.root=."], ["a b (a name is"]),
        (["models={a: vlm}"], ["no metric"]),
        (["models={a: vlm}", *METRICS], ["evaluation.root=DIR"]),
        (["models={a: vlm}", *METRICS, "evaluation.root=.", "metrics=[mir]"], ["mir", "image_dsr, cosine"]),
        (["models={a: vlm}", *METRICS, "evaluation.root=absent"], ["does not exist", "toxic.jsonl"]),
        (["models={a: vlm}", *METRICS, "evaluation.root=.", "dtype=int8"], ["int8", "bfloat16"]),
        (
            ["models={a: llm}", *METRICS, "evaluation.root=."],
            ["Not a vision-language model", "model_type 'llama'", "models={NAME: PATH}"],
        ),
        (["models={a: vlm}", "evaluation=none_such"], ["none_such", "mini"]),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str],
    parts: list[str],
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, world, *arguments, "run_dir=out") == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: ") and message.count("\n") == 1, message
    assert all(part in message for part in parts), message
    assert not (world / "out" / "summary.json").exists()
