"""Names on disk are those that older readers know; what transformers itself reads stays what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tests.tiny_families import FAMILIES, TEMPLATE, made
from tga.export import hf
from tga.export.card import ModelCard
from tga.export.hf import export_hf
from tga.export.layout import spell_for_all

CARD = ModelCard(name="tiny", base_llm="an-llm", base_vision_tower="a-tower", method="tga")
WITH_CLIP = ("llava", "llava_next", "sharegpt4v")


def names(directory: Path) -> set[str]:
    """Names of the tensors in all shards."""
    found: set[str] = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            found |= set(shard.keys())
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exported")
    for name in FAMILIES:
        export_hf(*made(name), root / name, CARD, trained_with=TEMPLATE[name], verify=False)
    return {name: root / name for name in FAMILIES}


@pytest.mark.parametrize("name", WITH_CLIP)
def test_the_vision_tower_has_the_names_of_llava_hf(name: str, exported: dict[str, Path]) -> None:
    tower = {key for key in names(exported[name]) if key.startswith("vision_tower.")}
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in tower
    assert {key for key in tower if not key.startswith("vision_tower.vision_model.")} == set()
    others = {key.split(".")[0] for key in names(exported[name])} - {"image_newline"}
    assert others == {"vision_tower", "multi_modal_projector", "language_model"}


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_missing_and_every_weight_is_the_same(name: str, exported: dict[str, Path]) -> None:
    model, processor = made(name)
    loaded, report = AutoModelForImageTextToText.from_pretrained(exported[name], output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)
    text = "USER: What is it? ASSISTANT: A dog."
    again = AutoProcessor.from_pretrained(exported[name])
    ids, expected = (one.tokenizer(text, add_special_tokens=False)["input_ids"] for one in (again, processor))
    assert ids == expected
    assert set(again.tokenizer.all_special_tokens) == set(processor.tokenizer.all_special_tokens)
    assert type(again.image_processor) is type(processor.image_processor)


def test_shards_and_their_index_are_renamed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "MAX_SHARD_SIZE", "40KB")
    model, processor = made("llava")
    directory = export_hf(model, processor, tmp_path / "hf", CARD, verify=False)
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2 and set(index) == names(directory)
    for key, file in index.items():
        with safe_open(directory / file, framework="pt") as shard:
            assert key in shard.keys()  # noqa: SIM118
    assert {path.suffix for path in directory.iterdir()} <= {".safetensors", ".json", ".jinja", ".md"}
    loaded, report = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fast_tokenizer_is_of_a_class_that_older_versions_have(name: str, exported: dict[str, Path]) -> None:
    files = list(exported[name].rglob("tokenizer_config.json"))
    assert files
    for file in files:
        config = json.loads(file.read_text(encoding="utf-8"))
        assert config["tokenizer_class"] != "TokenizersBackend"
        assert not isinstance(config.get("extra_special_tokens"), list)


def test_the_rotary_base_is_where_older_versions_look(tmp_path: Path, exported: dict[str, Path]) -> None:
    """A transformers of before 5 takes 10,000 where it finds none."""
    shutil.copytree(exported["llava"], tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    config: dict[str, Any] = json.loads(file.read_text())
    config["text_config"]["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 123456.0}
    file.write_text(json.dumps(config))
    spell_for_all(tmp_path / "hf")
    text = json.loads(file.read_text())["text_config"]
    assert text["rope_theta"] == 123456.0 and text["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    rope = AutoConfig.from_pretrained(tmp_path / "hf").text_config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"], rope["factor"]) == (123456.0, "linear", 2.0)


def test_what_is_spelled_so_already_stays(exported: dict[str, Path]) -> None:
    before = {path.name: path.read_bytes() for path in exported["llava"].iterdir()}
    spell_for_all(exported["llava"])
    assert {path.name: path.read_bytes() for path in exported["llava"].iterdir()} == before
    assert AutoTokenizer.from_pretrained(exported["llava"]).is_fast
