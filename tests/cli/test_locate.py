"""tga-locate as a user calls it, on tiny random models: files, numbers that fit together, one message per mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from tests.tiny import tiny_llava, tiny_llm, tiny_picture, write_tiny_llava_json, write_tiny_parts
from tests.tiny_clip import write_tiny_clip
from tga.alignment.located import read_located_layers
from tga.cli.locate import main
from tga.evaluation.generate import answer_questions
from tga.evaluation.judges import is_refusal
from tga.evaluation.questions import read_questions
from tga.localization.activation import traces
from tga.localization.prompts import text_batches, text_prompt
from tga.localization.sorry import sorry_tokens
from tga.vlm.families import family_of
from tga.vlm.language_model import LANGUAGE_MODEL, identify_language_model

EXPERIMENTS = Path(__file__).resolve().parents[2] / "conf" / "experiment"
TEXTS = ["How many cats sit on the chair?", "Describe the blue chair.", "Is the dog red?", "What is in the cup of tea?"]
WORDS = ["cats", "blue chair", "dog", "cup of tea"]


def call(monkeypatch: pytest.MonkeyPatch, directory: Path, *arguments: str) -> int:
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["tga-locate", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """vlm/, llm/, vision_tower/, retriever/ and q/ with the five question files."""
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    write_tiny_parts(tmp_path)
    write_tiny_clip(tmp_path / "retriever")
    folder = tmp_path / "q"
    folder.mkdir()
    toxic = [
        {"id": at, "prompt": text, "toxic": word} for at, (text, word) in enumerate(zip(TEXTS, WORDS, strict=True))
    ]
    write_rows(folder / "text_toxic.jsonl", toxic)
    write_rows(folder / "text_benign.jsonl", [{"id": at, "prompt": f"A tree and {at} balls?"} for at in range(3)])
    pictures = []
    for at in range(4):
        tiny_picture(at).save(folder / f"{at}.png")
        pictures.append({"id": at, "prompt": "What?", "image": f"{at}.png", "caption": f"a red ball beside {at} dog"})
    for name, rows in (("image_toxic", pictures), ("image_benign", pictures[:2]), ("pairs", pictures)):
        write_rows(folder / f"{name}.jsonl", rows)
    return tmp_path


def opening() -> str:
    """A word that the tiny language model favours at layer 2 and not before, so that some prompt activates there."""
    model, processor = tiny_llava()
    tokenizer, family = processor.tokenizer, family_of(model)
    prompts = [text_prompt(tokenizer, str(at), text, [], template="tokenizer") for at, text in enumerate(TEXTS)]
    (batch,) = text_batches(prompts, batch_size=4, tokenizer=tokenizer, device="cpu")
    for token in range(len(tokenizer)):
        word = tokenizer.decode(token).strip()
        if word.isascii() and word.isalpha():
            found = traces(model, family, [batch], sorry_tokens(tokenizer, [word]), variant="released")
            if any(trace.layers[:1] == (2,) for trace in found):
                return word
    raise AssertionError("no word fits")


COMMON = [
    "evaluation.root=q",
    "evaluation.max_new_tokens=4",
    "evaluation.batch_size=3",
    "run_dir=out",
    "device=cpu",
    "localization.ordinary_openings=[]",
]


def summary(world: Path) -> dict[str, Any]:
    return json.loads((world / "out" / "summary.json").read_text())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_four_figures_from_one_command(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    word = opening()
    arguments = [*COMMON, "vlm=vlm", "localization.window=2", "localization.variant=released"]
    arguments += [f"localization.openings=[{word}]", "encoder.name=local-dir:retriever"]
    assert call(monkeypatch, world, *arguments) == 0
    shown = capsys.readouterr()
    out, found = world / "out", summary(world)
    assert shown.out.splitlines()[-1] == f"Output directory: {out}"
    for name in ("activation", "figure2", "figure3", "figure4", "figure5"):
        with Image.open(out / "figures" / f"{name}.png") as picture:
            assert picture.size == (960, 540)
        assert rows_of(out / "figures" / f"{name}.jsonl")

    rows = rows_of(out / "activation.jsonl")
    assert [(row["set"], row["id"]) for row in rows] == [("benign", str(i)) for i in range(3)] + [
        ("toxic", str(i)) for i in range(4)
    ]
    layers = [row["layer"] for row in rows if row["set"] == "toxic"]
    active = sorted(layer for layer in layers if layer is not None)
    assert active[0] == 2 and found["share_without_activation"] == layers.count(None) / 4
    assert (found["band_min"], found["band_max"]) == (active[0], active[-1])
    located = read_located_layers(out / "layers.json")
    assert located.layers == tuple(range(active[0], active[-1] + 1))
    assert located.language_model == identify_language_model(tiny_llm(), LANGUAGE_MODEL), "that of the LLM alone"

    model, processor = tiny_llava()
    asked = {"max_new_tokens": 4, "batch_size": 3, "show_progress": False}
    questions = read_questions(world / "q" / "text_toxic.jsonl")
    expected = answer_questions(model, processor, family_of(model), questions, **asked)
    answers = rows_of(out / "figure3_answers.jsonl")
    plain = [row["answer"] for row in answers if row["condition"] == "plain"]
    assert plain == expected and found["text_dsr"] == sum(map(is_refusal, expected)) / 4
    blocked = [row["answer"] for row in answers if row["condition"] == "all"]
    assert blocked != plain, "on random models blocking everything changes some answer"
    assert found["dsr_blocked_window_1_2_n"] == found["dsr_blocked_window_2_3_n"] == found["dsr_blocked_band_n"] == 4
    assert found["image_dsr_n"] == found["dsr_added_window_2_3_n"] == 4 and found["over_refusal_added_band_n"] == 2
    assert 0 < found["attention_share_layer_3"] < 1 and found["attention_share_even"] > 0
    assert -1 <= found["cosine_centred_matched_layer_0"] <= 1 and -1 <= found["retriever_cosine_matched"] <= 1
    assert found["benign_prompts"] == 3 and 0 <= found["benign_gain_share_layer_2"] <= 1
    assert f"| text_dsr | {found['text_dsr']:.3f} |" in (out / "table.md").read_text()
    assert all(isinstance(value, (int, float, str, bool, type(None))) for value in found.values())


@pytest.mark.parametrize("experiment", sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
def test_every_experiment_can_be_located_in(experiment: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="tga.conf", version_base="1.3"):
        config = compose("locate", overrides=[f"+experiment={experiment}", "localization.window=3"])
    assert config.localization.window == 3
    named = read_yaml(EXPERIMENTS / f"{experiment}.yaml").get("localization", {})
    assert all(config.localization[key] == value for key, value in named.items() if key != "window")


def test_a_language_model_alone_gives_what_concerns_text(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*COMMON, "model.llm=llm", "localization.window=1", "localization.files.text_benign=null"]
    assert call(monkeypatch, world, *arguments) == 0
    found, shown = summary(world), " ".join(capsys.readouterr().out.split())
    assert "Figures 4 and 5 need a model with pictures: vlm=PATH" in shown
    drawn = {path.name for path in (world / "out" / "figures").glob("*.png")}
    assert drawn == {"activation.png", "figure2.png", "figure3.png"}
    assert "text_dsr" in found and "image_dsr" not in found and "benign_prompts" not in found
    if found["band_min"] is None:  # the usual apologies mean nothing to a random model
        assert "No prompt activates" in shown and found["share_without_activation"] == 1.0
        assert json.loads((world / "out" / "layers.json").read_text())["layers"] == []


def test_users_prompts_without_marked_words(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(world / "q" / "text_toxic.jsonl", [{"id": 0, "prompt": "A dog"}, {"id": 1, "prompt": "The cup"}])
    arguments = [*COMMON, "model.llm=llm", "localization.figures=[2]"]
    assert call(monkeypatch, world, *arguments) == 1
    assert call(monkeypatch, world, *arguments, "localization.toxic_tokens=message") == 0
    assert summary(world)["attention_share_layer_1"] > 0
    assert call(monkeypatch, world, *COMMON, "model.llm=llm", "localization.figures=[]", "run_dir=other") == 0


def test_a_projector_is_trained_once_where_no_vlm_is_named(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_tiny_llava_json(world)
    arguments = [*COMMON, "model.llm=llm", "model.vision_tower=vision_tower", "data.json=train.json", "device=cpu"]
    arguments += ["data.image_root=images", "training.accelerator=cpu", "training.max_steps=1", "seed=3"]
    arguments += ["localization.projector=baseline", "localization.figures=[4]", "localization.projector_dir=trained"]
    assert call(monkeypatch, world, *arguments) == 0
    assert "one is trained with the method baseline (it has not run yet)" in capfd.readouterr().err
    trained = json.loads((world / "trained" / "summary.json").read_text())
    assert (trained["method"], trained["steps"], trained["seed"]) == ("baseline", 1, 3)
    assert summary(world)["model"] == str(world / "trained")
    before = summary(world)["cosine_matched_layer_0"]
    assert call(monkeypatch, world, *arguments) == 0
    assert "one is trained" not in capfd.readouterr().err
    assert summary(world)["cosine_matched_layer_0"] == before
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["evaluation.root=q"], ["No model is named", "vlm=PATH", "model.llm=PATH"]),
        (["vlm=nowhere/at/all", "evaluation.root=q"], ["vlm: nowhere/at/all", "run directory"]),
        (["vlm=vlm"], ["no root", "evaluation.root=DIR"]),
        (["vlm=vlm", "evaluation.root=none"], ["does not exist", "text_toxic.jsonl"]),
        (["vlm=vlm", "evaluation.root=q", "localization.variant=top3"], ["top3", "log_ratio, released"]),
        (["vlm=vlm", "evaluation.root=q", "localization.figures=[1,2]"], ["figures", "Given: 1", "2, 3, 4, 5"]),
        (["vlm=vlm", "evaluation.root=q", "localization.layers_from=mode"], ["mode", "contrast_quartiles"]),
        (["vlm=vlm", "evaluation.root=q", "localization.toxic_tokens=some"], ["some", "marked, message"]),
        (["vlm=vlm", "evaluation.root=q", "localization.contrast_share=2"], ["between 0 and 1", "Given: 2"]),
        (["vlm=vlm", "evaluation.root=q"], ["windows of 5 layers", "1 to 3 layers", "localization.window=2"]),
        (["vlm=vlm", "evaluation.root=q", "localization.window=1", "localization.openings=['']"], ["No token is left"]),
        (["vlm=vlm", "evaluation.root=q", "localization.files.pairs=null"], ["needs the file pairs"]),
        (["vlm=vlm", "evaluation.root=q", "localization.files.pairs=text_benign.jsonl"], ["a picture and a caption"]),
        (
            ["vlm=vlm", "evaluation.root=q", "localization.files.text_toxic=text_benign.jsonl"],
            ["3 of 3 prompts", "do not say which", "toxic_tokens=message"],
        ),
        (
            ["vlm=vlm", "evaluation.root=q", "localization.layers_from=contrast_band",
             "localization.files.text_benign=null"],
            ["contrasted band needs benign prompts"],
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(
    arguments: list[str],
    parts: list[str],
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, world, *arguments, "run_dir=out", "device=cpu") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("Error: ") and all(part in message for part in parts), message
    assert not (world / "out" / "summary.json").exists()
