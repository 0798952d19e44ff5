"""docs/llava.md, walked: its commands, in its order, on a miniature of the layout that it describes."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from tests.test_docs import FENCE, commands
from tests.tiny import (
    tiny_clip_vision,
    tiny_image_processor,
    tiny_llm,
    tiny_picture,
    tiny_tokenizer,
    write_tiny_llava_json,
)
from tests.tiny_clip import write_tiny_clip
from tga.training.callbacks import read_metrics
from tga.training.checkpoint import read_checkpoint

PAGE = Path(__file__).resolve().parents[1] / "docs" / "llava.md"
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a miniature needs beside what the page says: a retriever from a directory, and no processes for so few pictures.
EXTRA = {
    "tga-train": ["training.num_workers=0", "training.accelerator=cpu", "training.log_every=1"],
    "tga-verify-data": ["workers=0"],
}
RETRIEVER = "encoder.name=local-dir:retriever"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories that the page lists; the LLM has 32 layers, since the experiment names layers 10-18."""
    root = tmp_path_factory.mktemp("layout")
    data, weights = root / "playground" / "data", root / "weights"
    tiny_llm(layers=32).save_pretrained(weights / "vicuna-7b-v1.5")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None  # Vicuna brings none
    tokenizer.save_pretrained(weights / "vicuna-7b-v1.5")
    for part in (tiny_clip_vision(), tiny_image_processor()):
        part.save_pretrained(weights / "clip-vit-large-patch14-336")
    made, _ = write_tiny_llava_json(data / "LLaVA-Pretrain", n=14)
    made.rename(data / "LLaVA-Pretrain" / "blip_laion_cc_sbu_558k.json")
    (data / "coco").mkdir()
    tiny_picture(3).save(data / "coco" / "1.jpg")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
    more = [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    mix = [
        {"id": "1", "image": "coco/1.jpg", "conversations": turns + more},
        {"id": "1", "image": "coco/1.jpg", "conversations": turns},
        {"id": "words", "conversations": more},
    ]
    (data / "llava_v1_5_mix665k.json").write_text(json.dumps(mix))
    write_tiny_clip(root / "retriever")
    tiny_picture(5).save(root / "picture.jpg")
    (root / "questions").mkdir()
    tiny_picture(6).save(root / "questions" / "a.jpg")
    asked = {"id": "1", "image": "a.jpg", "prompt": "Describe the picture.", "group": "gun", "expected": ["dog|puppy"]}
    for name in ("toxic", "benign", "vqa"):
        (root / "questions" / f"{name}.jsonl").write_text(json.dumps(asked) + "\n")
    return root


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """One command of the page, in this process; its exit code."""
    program, *arguments = shlex.split(command)
    arguments += EXTRA.get(program, [])
    if program == "tga-train" and "+experiment=llava7b" in arguments:
        arguments.append(RETRIEVER)
    if program == "tga-doctor" and arguments:
        arguments.append("training.accelerator=cpu")
    module = importlib.import_module(f"tga.cli.{program.removeprefix('tga-').replace('-', '_')}")
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    try:
        module.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_page_says_what_the_test_runs() -> None:
    programs = [command.split()[0] for command in commands(PAGE)]
    train, export = ["tga-train"] * 3, ["tga-export"] * 2
    assert programs == ["tga-doctor", "tga-verify-data", "tga-doctor", *train, *export, "tga-evaluate"]
    blocks = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    assert all(line.startswith(("tga-", "  ")) for block in blocks for line in block.splitlines())


def test_from_the_json_to_an_answer(
    layout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(layout)
    for command in commands(PAGE):
        assert run(command, monkeypatch) == 0, f"{command}\n{capsys.readouterr()}"
    first, second = layout / "outputs/llava7b/stage1", layout / "outputs/llava7b/stage2"
    assert [row["step"] for row in read_metrics(first / "metrics.jsonl")] == [1]
    assert json.loads((first / "summary.json").read_text())["guide_gradient_norm"] > 0
    one = read_checkpoint(first / "checkpoints" / "step-00000001.ckpt")
    two = read_checkpoint(second / "checkpoints" / "step-00000001.ckpt")
    name = "model.multi_modal_projector.linear_1.weight"
    assert set(one.weights) < set(two.weights)
    # Stage 2 started from stage 1's projector: one small step away from it, and not from a fresh one.
    assert 0 < (two.weights[name] - one.weights[name]).abs().max() < 1e-3
    projector = torch.load(layout / "served/llava-tga-7b-pretrain/mm_projector.bin", weights_only=True)
    torch.testing.assert_close(
        projector["model.mm_projector.0.weight"].float(), one.weights[name], rtol=1e-2, atol=1e-3
    )
    card = (layout / "served/llava-tga-7b/README.md").read_text()
    assert "lmsys/vicuna-7b-v1.5" in card and "| data | llava_v1_5_mix665k.json |" in card
    measured = json.loads((layout / "outputs/llava7b/measured/summary.json").read_text())
    assert {measured[f"{name}_n"] for name in ("image_dsr", "image_dsr_gun", "over_refusal", "vqa")} == {1}
    capsys.readouterr()
    [snippet] = PYTHON.findall(PAGE.read_text(encoding="utf-8"))
    scope: dict[str, object] = {}
    exec(compile(snippet, str(PAGE), "exec"), scope)  # noqa: S102
    prompt = scope["processor"].tokenizer.decode(scope["inputs"]["input_ids"][0])  # type: ignore[attr-defined, index]
    assert "USER: <image><image><image><image>\nWhat is in the picture? ASSISTANT:" in prompt
    assert capsys.readouterr().out.strip()
