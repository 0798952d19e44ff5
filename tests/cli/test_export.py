"""The command as a user calls it: arguments in, files and one line or one message out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from tests.export.parts import trained_model, write_checkpoint
from tga.cli.evaluate import main as evaluate_main
from tga.cli.export import main


def call(monkeypatch: pytest.MonkeyPatch, directory: Path, *arguments: str) -> int:
    """Run tga-export in this process, in `directory`; its exit code."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["tga-export", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    base, model, _ = trained_model(tmp_path / "parts")
    return write_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000007.ckpt", base, model)


def test_a_run_becomes_a_directory_with_summary_and_card(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "figures.json").write_text(json.dumps({"image_dsr": 0.625, "version_torch": "2"}))
    run = checkpoint.parent.parent
    code = call(monkeypatch, tmp_path, f"checkpoint={run}", "run_dir=out", "figures=figures.json", "name=tiny")
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.splitlines()[-1] == f"Output directory: {tmp_path / 'out' / 'hf'}"
    card = (tmp_path / "out" / "hf" / "README.md").read_text()
    assert "# tiny" in card and "| image_dsr | 0.625 |" in card and "raw cosine" in card
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["format"] == "hf" and summary["parameters"] > 1000 and summary["size_mib"] > 0
    assert (tmp_path / "out" / "config.yaml").is_file()


def test_the_card_takes_licence_and_data_sets(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["llm_name=org/llm", "license=other", "license_name=mine", "license_link=https://there/it"]
    arguments = [f"checkpoint={checkpoint}", "verify=false", "run_dir=out", "datasets=[org/data]", *named]
    assert call(monkeypatch, tmp_path, *arguments) == 0
    text = (tmp_path / "out" / "hf" / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.license_link) == ("other", "mine", "https://there/it")
    assert data.base_model == ["org/llm"] and data.datasets == ["org/data"]
    assert str(tmp_path) not in text
    capsys.readouterr()
    assert call(monkeypatch, tmp_path, f"checkpoint={checkpoint}", "license=Not One", "run_dir=again") == 1
    assert "license" in capsys.readouterr().err and not (tmp_path / "again").exists()


def test_an_export_without_a_chat_template_says_which_key_gives_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so does who asks in it: the key of the evaluation, where that of the training does nothing."""
    (tmp_path / "parts" / "llm" / "chat_template.jinja").unlink()
    arguments = [f"checkpoint={checkpoint}", "verify=false", "run_dir=out", "output=hf"]
    assert call(monkeypatch, tmp_path, *arguments) == 0
    said = capsys.readouterr().err
    assert "chat_template=vicuna_v1" in said and "evaluation.chat_template=vicuna_v1" in said
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "a", "prompt": "What?", "format": "chat", "group": "g"}))
    asked = ["tga-evaluate", "models={m: hf}", "device=cpu", "dtype=float32", "evaluation.root=.", "run_dir=e",
             "+evaluation.metrics.text_dsr={file: q.jsonl, judge: refusal}", "evaluation.max_new_tokens=1"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as end:
        evaluate_main()
    said = capsys.readouterr().err
    assert end.value.code == 1 and "evaluation.chat_template=vicuna_v1" in said and "data.template" not in said
    assert call(monkeypatch, tmp_path, *arguments, "chat_template=vicuna_v1") == 0
    assert "chat_template=" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", asked)
    evaluate_main()


def test_a_llava_projector_goes_out_and_comes_back(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        f"checkpoint={checkpoint}",
        "format=llava",
        "output=there",
        "run_dir=out",
        "vision_tower_name=org/tower",
    ]
    assert call(monkeypatch, tmp_path, *arguments) == 0
    assert json.loads((tmp_path / "there" / "config.json").read_text())["mm_vision_tower"] == "org/tower"
    parts = [f"model.llm={tmp_path}/parts/llm", f"model.vision_tower={tmp_path}/parts/vision_tower"]
    assert call(monkeypatch, tmp_path, "projector=there", *parts, "output=back", "run_dir=out") == 0
    whole = ["model.vlm=back", "format=llava", "output=again", "run_dir=out"]
    assert call(monkeypatch, tmp_path, *whole) == 1, "the vocabulary of the base is not known"
    assert call(monkeypatch, tmp_path, *whole, f"llm_name={tmp_path}/parts/llm") == 0
    first, second = (torch.load(tmp_path / name / "mm_projector.bin", weights_only=True) for name in ("there", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["Exactly one thing", "checkpoint=None"]),
        (["checkpoint=a.ckpt", "model.vlm=b"], ["Exactly one thing", "a.ckpt"]),
        (["checkpoint=absent.ckpt"], ["no checkpoint", "absent.ckpt"]),
        (["checkpoint=absent.ckpt", "format=gguf"], ["gguf", "hf, llava"]),
        (["checkpoint=absent.ckpt", "dtype=int8"], ["int8", "bfloat16"]),
        (["checkpoint=absent.ckpt", "figures=none.json"], ["summary", "none.json"]),
        (["chekpoint=a"], ["chekpoint"]),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    arguments: list[str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, tmp_path, *arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: ") and message.count("\n") == 1, message
    for part in parts:
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_lightning_is_not_needed_to_export() -> None:
    """An export runs where nothing trains: importing the command does not import Lightning."""
    code = "import sys, tga.cli.export; print('lightning' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert result.stdout.strip() == "False"
