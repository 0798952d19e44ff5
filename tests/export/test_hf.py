"""The exported directory against the tool that reads it: plain transformers, where `tga` cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.export.parts import trained_model
from tests.tiny import tiny_picture
from tga.errors import UserError
from tga.export.card import ModelCard
from tga.export.hf import export_hf

CARD = ModelCard(name="tiny", base_llm="an-llm", base_vision_tower="a-tower", method="tga", figures={"image_dsr": 0.75})
PROMPT = "USER: <image>\nWhat is in the picture? ASSISTANT:"
NEW_TOKENS = 12

# Runs in a process of its own, isolated (-I: no PYTHONPATH, no user site, no working directory on the path).
READER = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tga", "retrieval_index"):
            raise ImportError(name + " is not to be had here")

sys.meta_path.insert(0, Refuse())
try:
    import tga
except ImportError:
    pass
else:
    raise SystemExit("tga can be imported, this test would show nothing")

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

directory, picture, prompt, new_tokens = sys.argv[1:]
torch.set_num_threads(1)
model = LlavaForConditionalGeneration.from_pretrained(directory, attn_implementation="eager").eval()
processor = AutoProcessor.from_pretrained(directory)
inputs = processor(text=[prompt], images=[Image.open(picture)], return_tensors="pt")
with torch.no_grad():
    tokens = model.generate(**inputs, max_new_tokens=int(new_tokens), do_sample=False)
    logits = model(**inputs).logits[0, -1]
chat = processor.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
assert not any(name.split(".")[0] == "tga" for name in sys.modules)
print(json.dumps({"tokens": tokens[0].tolist(), "logits": logits.double().tolist(), "chat": chat}))
"""


def test_plain_transformers_generates_the_same_tokens(tmp_path: Path) -> None:
    _, model, processor = trained_model(tmp_path / "parts")
    directory = export_hf(model, processor, tmp_path / "exported", CARD, verify=False)
    picture = tmp_path / "picture.png"
    tiny_picture(3).save(picture)

    inputs = processor(text=[PROMPT], images=[tiny_picture(3)], return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        logits = model(**inputs).logits[0, -1]
    chat = processor.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)

    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-I", "-c", READER, str(directory), str(picture), PROMPT, str(NEW_TOKENS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["tokens"] == tokens.tolist()
    assert len(found["tokens"]) > inputs["input_ids"].shape[1]
    torch.testing.assert_close(torch.tensor(found["logits"], dtype=torch.float64), logits.double(), rtol=0, atol=1e-6)
    assert found["chat"] == chat


def test_the_tokens_depend_on_the_projector(tmp_path: Path) -> None:
    """Otherwise the test above would pass with a random projector in the export."""
    _, model, processor = trained_model(tmp_path)
    inputs = processor(text=[PROMPT], images=[tiny_picture(3)], return_tensors="pt")
    with torch.no_grad():
        before = model(**inputs).logits[0, -1]
        model.model.multi_modal_projector.linear_2.weight.mul_(-1)
        after = model(**inputs).logits[0, -1]
    assert (before - after).abs().max() > 1e-3


def test_the_directory_holds_weights_settings_and_card_and_no_path_of_ours(tmp_path: Path) -> None:
    _, model, processor = trained_model(tmp_path / "parts")
    directory = export_hf(model, processor, tmp_path / "exported", CARD, verify=False)
    files = {path.name for path in directory.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"} <= files
    assert {"tokenizer.json", "tokenizer_config.json", "README.md"} <= files
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert "auto_map" not in config
    for path in directory.glob("*.json"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name
    assert "| image_dsr | 0.75 |" in (directory / "README.md").read_text()


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path: Path) -> None:
    _, model, processor = trained_model(tmp_path / "parts")
    directory = export_hf(model, processor, tmp_path / "exported", CARD, verify=False)
    written = {path.name: path.read_bytes() for path in directory.iterdir()}
    export_hf(model, processor, directory, replace(CARD, name="another"), verify=False)
    assert "another" in (directory / "README.md").read_text()
    assert {path.name for path in directory.iterdir()} == set(written)
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "exported"}


def added(directory: Path) -> None:
    (directory / "notes.txt").write_text("mine")


def edited(directory: Path) -> None:
    card = directory / "README.md"
    card.write_text(card.read_text().replace("tiny", "tidy"))


def fine_tuned(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")


@pytest.mark.parametrize("change", [added, edited, fine_tuned])
def test_an_export_that_somebody_has_worked_in_is_left_alone(tmp_path: Path, change: Callable[[Path], None]) -> None:
    _, model, processor = trained_model(tmp_path / "parts")
    directory = export_hf(model, processor, tmp_path / "exported", CARD, verify=False)
    change(directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(UserError, match="no earlier export.*others, or were changed since: "):
        export_hf(model, processor, directory, CARD, verify=False)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize("through_a_link", [False, True])
def test_somebodys_model_with_a_card_is_left_alone(tmp_path: Path, through_a_link: bool) -> None:
    _, model, processor = trained_model(tmp_path / "parts")
    downloaded = tmp_path / "downloaded"
    model.save_pretrained(downloaded)
    (downloaded / "README.md").write_text("# A model of somebody")
    before = {path.name: path.read_bytes() for path in downloaded.iterdir()}
    target = tmp_path / "link" if through_a_link else downloaded
    if through_a_link:
        target.symlink_to(downloaded)
    with pytest.raises(UserError, match="no earlier export.*it has no mark"):
        export_hf(model, processor, target, CARD, verify=False)
    assert {path.name: path.read_bytes() for path in downloaded.iterdir()} == before
    assert target.is_symlink() == through_a_link


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    _, model, processor = trained_model(tmp_path / "parts")
    before = os.umask(umask)
    try:
        directory = export_hf(model, processor, tmp_path / "exported", CARD, verify=False)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes["model.safetensors"] == 0o666 & ~umask and set(modes.values()) == {0o666 & ~umask}
    assert directory.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    _, model, processor = trained_model(tmp_path / "parts")
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"no earlier export.*Given: .*thesis.*Allowed: .*To change it: output="):
        export_hf(model, processor, target, CARD)
    assert (target / "chapter.txt").read_text() == "years of work"
