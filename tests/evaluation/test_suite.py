"""The suite: keys, values and answers of a tiny model, and files that lack what their metric needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import tiny_llava, tiny_picture
from tga.errors import UserError
from tga.evaluation.metrics import Metric, chosen_metrics, metrics_from_config, read_metric_questions
from tga.evaluation.rates import wilson
from tga.evaluation.suite import Judged, evaluate, rate_values
from tga.vlm.families import family_of


def write_world(root: Path) -> dict[str, Metric]:
    (root / "images").mkdir()
    pictures, texts = [], []
    for i in range(6):
        tiny_picture(i).save(root / "images" / f"{i}.png")
        group = "gun" if i < 2 else "Insulting Gesture"
        row = {"id": i, "image": f"images/{i}.png", "prompt": "Describe the image.", "group": group}
        pictures.append({**row, "expected": ["dog"], "caption": f"A dog beside {i} chairs."})
        texts.append({"id": i, "prompt": f"How many cats are {i}?"})
    for name, rows in (("image", pictures), ("text", texts)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "text_dsr": Metric(root / "text.jsonl"),
        "image_dsr": Metric(root / "image.jsonl", by_group=True),
        "caption_accuracy": Metric(root / "image.jsonl", judge="names_all"),
        "cosine": Metric(root / "image.jsonl", kind="cosine", layers=(0, 3)),
        "modality_gap": Metric(root / "image.jsonl", kind="modality_gap", pairs=4),
    }


def test_evaluate_writes_answers_and_returns_flat_values(tmp_path: Path) -> None:
    metrics = write_world(tmp_path)
    model, processor = tiny_llava()
    settings = {"model_name": "tiny", "max_new_tokens": 5, "show_progress": False}
    values = evaluate(model, processor, family_of(model), metrics, out_dir=tmp_path / "out", **settings)
    rates = {"text_dsr", "image_dsr", "image_dsr_gun", "image_dsr_insulting_gesture", "caption_accuracy"}
    ends = {f"{rate}{end}" for rate in rates for end in ("", "_low", "_high", "_n")}
    kinds = ("matched", "mismatched", "centred_matched", "centred_mismatched")
    cosines = {f"cosine_{kind}_layer_{layer}" for kind in kinds for layer in (0, 3)}
    measures = ("fid", "l2", "cosine", "log_norm_ratio")
    gaps = {f"modality_gap_{measure}_layer_{layer}" for measure in measures for layer in range(4)}
    assert set(values) == ends | cosines | gaps | {"modality_gap_mir"}
    assert values["image_dsr_n"] == 6 and values["image_dsr_gun_n"] == 2
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [(row["metric"], row["id"]) for row in rows] == [
        (metric, str(i)) for metric in ("text_dsr", "image_dsr", "caption_accuracy") for i in range(6)
    ]
    assert set(rows[0]) == {"model", "metric", "id", "group", "prompt", "answer", "judged"}
    assert rows[6]["model"] == "tiny" and rows[6]["group"] == "gun"
    for metric in ("text_dsr", "image_dsr", "caption_accuracy"):
        judged = [row["judged"] for row in rows if row["metric"] == metric]
        assert values[metric] == sum(judged) / len(judged)


def test_evaluation_repeats_itself(tmp_path: Path) -> None:
    metrics = write_world(tmp_path)
    model, processor = tiny_llava()
    settings = {"out_dir": tmp_path / "out", "max_new_tokens": 5, "show_progress": False, "batch_size": 4}
    first = evaluate(model, processor, family_of(model), metrics, **settings)
    assert evaluate(model, processor, family_of(model), metrics, **settings) == first


def test_a_metric_is_chosen_by_name_and_pairs_by_number(tmp_path: Path) -> None:
    metrics = write_world(tmp_path)
    chosen = chosen_metrics(metrics, ["modality_gap", "cosine"])
    assert list(chosen) == ["cosine", "modality_gap"] and chosen_metrics(metrics, None) == metrics
    with pytest.raises(UserError, match=r"no such metric. Given: \['gap'\]. Allowed: text_dsr, .*modality_gap"):
        chosen_metrics(metrics, ["gap"])
    model, processor = tiny_llava()
    settings = {"out_dir": tmp_path / "out", "show_progress": False}
    four = evaluate(model, processor, family_of(model), {"gap": metrics["modality_gap"]}, **settings)
    limited = {"gap": Metric(metrics["modality_gap"].file, kind="modality_gap", pairs=None)}
    assert evaluate(model, processor, family_of(model), limited, limit=4, **settings) == four
    assert evaluate(model, processor, family_of(model), limited, **settings) != four


def test_rate_values_by_group_are_wilson_rates() -> None:
    made = [Judged("m", "dsr", str(i), group, "", "", good) for i, (group, good) in enumerate(
        [("a b", True), ("a b", False), ("c", True), ("", True)]
    )]  # fmt: skip
    values = rate_values("dsr", made, by_group=True)
    assert values["dsr"] == 0.75 and values["dsr_low"] == wilson(3, 4).low
    assert values["dsr_a_b"] == 0.5 and values["dsr_a_b_high"] == wilson(1, 2).high
    assert values["dsr_c_n"] == 1 and len(values) == 12
    assert set(rate_values("dsr", made, by_group=False)) == {"dsr", "dsr_low", "dsr_high", "dsr_n"}


def test_metrics_from_config(tmp_path: Path) -> None:
    settings = {"a": {"file": "a.jsonl", "judge": "matches"}, "b": {"file": "/b", "layers": [1]}}
    made = metrics_from_config(tmp_path, settings)
    assert made == {"a": Metric(tmp_path / "a.jsonl", judge="matches"), "b": Metric(Path("/b"), layers=(1,))}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": "refusal"}, "no file"),
        ({"file": "x", "jugde": "refusal"}, "jugde"),
        ({"file": "x", "judge": "oracle"}, "unknown judge.*oracle.*names_all"),
        ({"file": "x", "kind": "colour"}, "unknown kind.*colour.*cosine"),
    ],
)
def test_wrong_metrics_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        metrics_from_config(tmp_path, {"m": settings})


def test_all_files_are_checked_before_anything_is_asked(tmp_path: Path) -> None:
    metrics = write_world(tmp_path)
    with pytest.raises(UserError, match="6 of 6 questions .* lack expected answers"):
        read_metric_questions({**metrics, "vqa": Metric(tmp_path / "text.jsonl", judge="matches")})
    with pytest.raises(UserError, match="lack a picture and a caption"):
        read_metric_questions({"cosine": Metric(tmp_path / "text.jsonl", kind="cosine")})
    with pytest.raises(UserError, match="no metric"):
        read_metric_questions({})
    assert len(read_metric_questions(metrics, limit=2)["image_dsr"]) == 2


def test_a_folder_of_scenes_is_a_metric(tmp_path: Path) -> None:
    for scene in ("gun", "knife"):
        (tmp_path / scene).mkdir()
        tiny_picture(1).save(tmp_path / scene / "1.png")
    model, processor = tiny_llava()
    metrics = {"image_dsr": Metric(tmp_path, prompt="Describe it.", by_group=True)}
    settings = {"out_dir": tmp_path / "out", "max_new_tokens": 2, "show_progress": False}
    values = evaluate(model, processor, family_of(model), metrics, **settings)
    assert values["image_dsr_gun_n"] == values["image_dsr_knife_n"] == 1
