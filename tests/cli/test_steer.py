"""tga-steer as a user calls it, and steering= in tga-evaluate: files, figures, answers, and one message per mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_llava, tiny_picture
from tga.cli import evaluate, steer
from tga.steering.vectors import read_vectors

METRICS = [
    "+evaluation.metrics.image_dsr={file: toxic.jsonl}",
    "+evaluation.metrics.over_refusal={file: benign.jsonl, judge: names_all}",
    "+evaluation.metrics.vqa={file: vqa.jsonl, judge: names_all}",
    "+evaluation.metrics.text_dsr={file: anchors.jsonl}",
]
CHOICE = ["steering.choose.utility=[vqa]", "steering.choose.utility_tolerance=1"]
ANCHORS = ["steering.anchors=choose/anchors.jsonl"]
ASKED = [*METRICS, "evaluation.max_new_tokens=6", "evaluation.batch_size=3"]


@pytest.fixture
def call(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command in the world; its summary, what it printed, and its answers."""

    def run(command: Any, *arguments: str, fails: bool = False) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
        capsys.readouterr()
        monkeypatch.chdir(world)
        monkeypatch.setattr(sys, "argv", ["tga", *arguments])
        try:
            command.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        assert code == int(fails), captured.err
        if fails:
            assert captured.err.startswith("Error: ") and captured.err.count("\n") == 1, captured.err
            return {}, captured.err, []
        out = Path(captured.out.splitlines()[-1].removeprefix("Output directory: "))
        rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
        return json.loads((out / "summary.json").read_text()), captured.out, rows

    return run


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A saved tiny VLM, texts, and pictures to refuse, not to refuse, and to ask about, in two folders."""
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    for folder, first in (("report", 0), ("choose", 10)):
        (tmp_path / folder).mkdir()
        for number in range(4):
            tiny_picture(first + number).save(tmp_path / folder / f"{number}.png")
        pictured = [{"id": n, "image": f"{n}.png", "prompt": f"What are {n}?", "expected": ["dog"]} for n in range(4)]
        for name in ("toxic", "benign", "vqa"):
            write_rows(tmp_path / folder / f"{name}.jsonl", pictured)
        texts = [{"id": n, "prompt": f"How many cats sit on {n} blue chairs?"[: 20 + 4 * n]} for n in range(5)]
        write_rows(tmp_path / folder / "anchors.jsonl", texts)
    return tmp_path


def answers(rows: list[dict[str, Any]], metric: str = "image_dsr") -> list[str]:
    return [row["answer"] for row in rows if row["metric"] == metric]


def plain_answers_over_refuse(world: Path, call: Any) -> None:
    """Let the rule choose a strength: what the plain model says of benign pictures counts as over-refusal."""
    choosing = ["evaluation.root=choose", *ASKED, "models={vlm: vlm}", "run_dir=before"]
    _, _, rows = call(evaluate, *choosing)
    old = [json.loads(line) for line in (world / "choose" / "benign.jsonl").read_text().splitlines()]
    new = [{**row, "expected": [said]} for row, said in zip(old, answers(rows), strict=True)]
    write_rows(world / "choose" / "benign.jsonl", new)


def test_vectors_and_the_chosen_strength_go_from_one_command_to_the_other(world: Path, call: Any) -> None:
    plain_answers_over_refuse(world, call)
    choosing = ["vlm=vlm", *ASKED, *CHOICE, *ANCHORS, "steering.choose_root=choose"]
    summary, printed, rows = call(steer, *choosing, "steering.alphas=[2,0.5]", "run_dir=out")
    assert summary["alpha"] == 0.5 and summary["anchors_n"] == 5
    assert summary["baseline_over_refusal"] == summary["alpha_0_over_refusal"] == 1.0
    assert summary["chosen_over_refusal"] == summary["alpha_0.5_over_refusal"] < 0.05
    assert summary["shift_norm_layer_3"] > 0 and -1 <= summary["agreement_layer_3"] <= 1
    assert summary["rule"].startswith("largest image_dsr with over_refusal <= 0.05, vqa >=")
    assert {row["model"] for row in rows} == {"alpha 0", "alpha 0.5", "alpha 2"}
    assert "text_dsr" not in {row["metric"] for row in rows}, "what holds no picture is not corrected"
    table = (world / "out" / "table.md").read_text()
    assert "| metric | 0 | 0.5 (chosen) | 2 |" in table and "| over_refusal | 1.000 [" in table
    assert "0.5 (chosen)" in printed and "[" not in printed.split("alpha 0.5:")[0]
    vectors = read_vectors(world / "out" / "vectors.safetensors")
    assert vectors.alpha == 0.5 and vectors.rule == summary["rule"] and sorted(vectors.shifts) == [1, 2, 3]
    assert vectors.origin["anchors"] == "anchors.jsonl" and vectors.origin["picture"] == "blank"
    assert (np.asarray(Image.open(world / "out" / "steering_picture.png")) == 255).all()

    asked = ["evaluation.root=report", *ASKED, "models={vlm: vlm}", "steering=cmrm"]
    summary, printed, steered = call(evaluate, *asked, "steering.vectors=out/vectors.safetensors", "run_dir=with")
    assert summary["steering_alpha"] == 0.5 and "alpha 0.5" in printed
    by_anchors = [*ANCHORS, "steering.alpha=0.5", "run_dir=again"]
    _, _, again = call(evaluate, *asked, *by_anchors)
    assert answers(again) == answers(steered)
    saved = read_vectors(world / "again" / "steering_vlm" / "vectors.safetensors")
    assert all(torch.equal(saved.shifts[layer], vectors.shifts[layer]) for layer in (1, 2, 3))
    grid = [*ANCHORS, "steering.alphas=[0.5,2]", "steering.choose_root=choose", *CHOICE]
    summary, _, by_grid = call(evaluate, *asked, *grid, "run_dir=grid")
    assert summary["steering_alpha"] == 0.5 and answers(by_grid) == answers(steered)
    swept = json.loads((world / "grid" / "steering_vlm" / "sweep.json").read_text())
    assert swept["chosen"] == 0.5 and swept["rule"].startswith("largest image_dsr") and len(swept["alphas"]) == 3
    of_tool = json.loads((world / "out" / "table.json").read_text())
    assert swept["alphas"]["0.5"]["over_refusal"] == of_tool["alphas"]["0.5"]["over_refusal"] < 0.05
    assert "| metric | 0 | 0.5 (chosen) | 2 |" in (world / "grid" / "steering_vlm" / "sweep.md").read_text()


def test_each_method_corrects_answers_to_pictures_and_no_others(world: Path, call: Any) -> None:
    asked = ["evaluation.root=report", *ASKED, "models={vlm: vlm}"]
    _, _, plain = call(evaluate, *asked, "run_dir=plain")
    found = {}
    for name, more in {
        "set": ["steering=cmrm", *ANCHORS, "steering.picture=noise", "steering.direction=first_pc"],
        "sample": ["steering=cmrm_sample"],
        "last": [
            "steering=cmrm_sample", "steering.positions=last", "steering.layers=[2,3]", "steering.picture=mean",
            "steering.mean_of=choose/toxic.jsonl",
        ],
    }.items():  # fmt: skip
        summary, _, rows = call(evaluate, *asked, *more, f"run_dir={name}")
        assert summary["steering_alpha"] == 1.0 and summary["steering_prepare_s"] >= 0
        assert answers(rows, "text_dsr") == answers(plain, "text_dsr")
        found[name] = tuple(answers(rows))
    assert len({*found.values(), tuple(answers(plain))}) == 4
    none = ["steering=cmrm_sample", "steering.alpha=0", "run_dir=none"]
    summary, _, rows = call(evaluate, *asked, *none)
    assert summary["steering_alpha"] == 0 and answers(rows) == answers(plain)


def test_the_sample_level_is_swept_without_vectors(world: Path, call: Any) -> None:
    choosing = ["vlm=vlm", "steering=cmrm_sample", *ASKED, *CHOICE, "steering.choose_root=choose", "run_dir=out"]
    summary, printed, rows = call(steer, *choosing, "steering.alphas=[1]")
    assert summary["alpha"] == 0 and "alpha 0 corrects nothing" in " ".join(printed.split())
    assert {row["model"] for row in rows} == {"alpha 0", "alpha 1"}
    assert not (world / "out" / "vectors.safetensors").exists()


def test_vectors_of_another_model_are_refused(world: Path, call: Any) -> None:
    arguments = ["vlm=vlm", *ANCHORS, "steering.alphas=null", *ASKED, "run_dir=out"]
    (world / "out").mkdir()
    (world / "out" / "answers.jsonl").write_text("")  # this command leaves none without a sweep
    summary, _, _ = call(steer, *arguments)
    assert summary["alpha"] == 1.0 and read_vectors(world / "out" / "vectors.safetensors").alpha is None
    model, processor = tiny_llava()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight *= 2
    model.save_pretrained(world / "other")
    processor.save_pretrained(world / "other")
    asked = ["models={vlm: other}", "evaluation.root=report", *ASKED, "steering=cmrm"]
    _, message, _ = call(evaluate, *asked, "steering.vectors=out/vectors.safetensors", "run_dir=no", fails=True)
    assert "of another model (weights differ)" in message and "tga-steer" in message


@pytest.mark.parametrize(
    ("command", "arguments", "parts"),
    [
        (steer, [], ["vlm", "missing"]),
        (steer, ["vlm=vlm"], ["vectors, or anchors", "steering.anchors=FILE"]),
        (steer, ["vlm=vlm", "steering.anchors=a"], ["questions to choose on", "steering.choose_root=DIR"]),
        (steer, ["vlm=vlm", "steering.anchors=a", "steering.alpha=1"], ["one strength or a grid"]),
        (steer, ["vlm=vlm", "steering.anchors=a", "steering.picture=black"], ["black", "blank, noise, mean, own"]),
        (steer, ["vlm=vlm", "steering=cmrm_sample", "steering.alphas=null"], ["no vectors to extract"]),
        (steer, ["vlm=vlm", "steering=cmrm_sample", "steering.picture=own"], ["one for all requests"]),
        (steer, ["vlm=vlm", "steering.anchors=a", "steering.picture=mean"], ["steering.mean_of=FILE"]),
        (
            steer,
            ["vlm=vlm", *ANCHORS, "steering.choose_root=choose", *METRICS],
            ["rates that there are not", "caption_accuracy", "steering.choose.utility"],
        ),
        (
            steer,
            ["vlm=vlm", *ANCHORS, "steering.alphas=null", "steering.layers=[0,1]"],
            ["layer 0", "1 to 3"],
        ),
        (
            steer,
            ["vlm=vlm", *ANCHORS, "steering.alphas=null", "steering.picture=own"],
            ["5 of 5 anchors have no picture"],
        ),
        (
            evaluate,
            ["models={a: vlm}", "steering=cmrm_sample", "steering.alphas=[1]", "steering.choose_root=report",
             "evaluation.root=report", *METRICS, *CHOICE],
            ["on the questions that are reported"],
        ),
        (
            evaluate,
            ["models={a: vlm}", "steering=cmrm", "steering.vectors=absent", "evaluation.root=report", *METRICS],
            ["no file of steering vectors", "absent"],
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(call: Any, command: Any, arguments: list[str], parts: list[str]) -> None:
    _, message, _ = call(command, *arguments, "run_dir=out", fails=True)
    assert all(part in message for part in parts), message
