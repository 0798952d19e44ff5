"""A directory that does not load as the model that was exported never takes its name."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_llava
from tga.errors import UserError
from tga.export import hf, verify
from tga.export.card import ModelCard
from tga.export.hf import export_hf

CARD = ModelCard(name="tiny", base_llm="an-llm", base_vision_tower="a-tower", method="tga")


def rename(directory: Path) -> None:
    """Names that no loader knows, for the projector."""
    file = directory / "model.safetensors"
    weights = {name.replace("multi_modal_projector", "projector"): value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def alter(directory: Path) -> None:
    """Another projector under the right names."""
    file = directory / "model.safetensors"
    weights = load_file(file)
    weights["multi_modal_projector.linear_2.weight"] *= 2
    save_file(weights, file, metadata={"format": "pt"})


def cut(directory: Path) -> None:
    """Half a file."""
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (rename, r"names are not those of the loader.*missing_keys.*unexpected_keys.*verify=false"),
        (alter, r"answers otherwise.*logits that differ by [0-9.]+.*verify=false"),
        (cut, r"cannot be loaded.*Error.*verify=false"),
    ],
)
def test_what_does_not_load_as_the_model_is_not_kept(
    spoil: Callable[[Path], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "spell_for_all", spoil)
    model, processor = tiny_llava()
    with pytest.raises(UserError, match=said):
        export_hf(model, processor, tmp_path / "hf", CARD)
    assert list(tmp_path.iterdir()) == []
    directory = export_hf(model, processor, tmp_path / "hf", CARD, verify=False)
    assert "Not loaded again" in (directory / "README.md").read_text()


def test_what_loads_is_kept_and_the_card_says_what_it_needs(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    model.train()
    directory = export_hf(model, processor, tmp_path / "hf", CARD, trained_with="vicuna_v1")
    card = (directory / "README.md").read_text()
    assert "Needs transformers 5.0 or newer" in card and "fresh process" in card
    assert model.training


def test_half_precision_has_its_own_tolerance(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    processor.chat_template = processor.tokenizer.chat_template = None
    assert export_hf(model.bfloat16(), processor, tmp_path / "hf", CARD).is_dir()


def test_too_little_memory_and_too_little_time_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_llava()

    def killed(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -9, "", "")

    def late(command: list[str], **options: float) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    for run, said in ((killed, r"memory is short.*signal 9"), (late, r"took too long.*3600 s")):
        monkeypatch.setattr(verify.subprocess, "run", run)
        with pytest.raises(UserError, match=said):
            export_hf(model, processor, tmp_path / "hf", CARD)
    assert list(tmp_path.iterdir()) == []
