"""The formats by name, and the card that is made of a source."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from transformers import AutoProcessor

from retrieval_index.ownership import MARK
from tests.export.parts import trained_model, write_checkpoint
from tga.errors import UserError
from tga.export.run import card_of, export_source
from tga.export.source import Source, source_from_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Source:
    base, model, _ = trained_model(tmp_path / "parts")
    return source_from_checkpoint(write_checkpoint(tmp_path / "run.ckpt", base, model), dtype=None)


def test_each_format_writes_its_files(source: Source, tmp_path: Path) -> None:
    card = card_of(source, name="tiny")
    assert (export_source(source, tmp_path / "a", card, format="hf", verify=False) / "model.safetensors").is_file()
    llava = export_source(source, tmp_path / "b", card, format="llava")
    assert sorted(path.name for path in llava.iterdir()) == [MARK, "README.md", "config.json", "mm_projector.bin"]


def without_chat_template(source: Source) -> Source:
    """As Vicuna's: a language model whose tokenizer brings none, after a stage of captions."""
    source.processor.chat_template = source.processor.tokenizer.chat_template = None
    return dataclasses.replace(source, hyper_parameters={**source.hyper_parameters, "template": "plain"})


def test_a_stage_of_captions_is_exported_with_the_chat_template_that_is_named(source: Source, tmp_path: Path) -> None:
    source = without_chat_template(source)
    card = card_of(source, name="tiny")
    bare = export_source(source, tmp_path / "a", card, format="hf", verify=False)
    said = (bare / "README.md").read_text()
    assert not (bare / "chat_template.jinja").exists()
    assert "tga-export chat_template=vicuna_v1" in said and "evaluation.chat_template=vicuna_v1" in said
    named = export_source(source, tmp_path / "b", card, format="hf", chat_template="vicuna_v1", verify=False)
    assert "There is no chat template" not in (named / "README.md").read_text()
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    shown = AutoProcessor.from_pretrained(named).apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert shown.endswith("USER: <image>\nWhat is it? ASSISTANT:")
    with pytest.raises(UserError, match=r"no such chat template.*plain.*chat_template="):
        export_source(source, tmp_path / "c", card, format="hf", chat_template="plain")


def test_an_unknown_format_is_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Given: gguf\. Allowed: hf, llava"):
        export_source(source, tmp_path / "out", card_of(source, name="tiny"), format="gguf")


def test_llavas_format_refuses_to_lose_what_was_trained(tmp_path: Path) -> None:
    base, model, _ = trained_model(tmp_path / "parts")
    also = ("model.language_model.layers.0.mlp.up_proj.weight",)
    source = source_from_checkpoint(write_checkpoint(tmp_path / "run.ckpt", base, model, also=also), dtype=None)
    with pytest.raises(UserError, match=r"1 other trained parameters.*up_proj"):
        export_source(source, tmp_path / "out", card_of(source, name="tiny"), format="llava")
    assert not (tmp_path / "out").exists()


def test_the_card_takes_the_checkpoints_word_and_measured_numbers_only(source: Source) -> None:
    card = card_of(source, name="tiny", figures={"image_dsr": 0.5, "version_torch": "2", "done": True})
    assert card.method == "tga, all layers, raw cosine"
    assert card.settings == {"learning_rate": 0.002, "loss.pair_weight": 1.0}
    assert card.figures == {"image_dsr": 0.5}
    assert card.base_llm == source.base.llm
    with pytest.raises(UserError, match=r"data sets of the hub.*train\.json"):
        card_of(source, name="tiny", datasets=["org/data", "train.json"])
    named = card_of(source, name="tiny", method="mine", llm_name="org/llm", vision_tower_name="org/tower")
    assert (named.method, named.base_llm, named.base_vision_tower) == ("mine", "org/llm", "org/tower")
