"""An outline has the parts and sizes of the loaded model, reads no weights, and sees what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GraniteConfig, GraniteForCausalLM

from tests.tiny import tiny_llm, write_tiny_parts
from tests.tiny_families import FAMILIES, made
from tga.errors import UserError
from tga.training.base_model import BaseModel
from tga.vlm.assemble import assemble_llava
from tga.vlm.families import family_of, num_layers
from tga.vlm.freezing import freeze, parameter_table
from tga.vlm.outline import outline_llava, outline_vlm, require_weights
from tga.vlm.pictures import Pictures


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    llm, vision = write_tiny_parts(tmp_path_factory.mktemp("parts"))
    return str(llm), str(vision)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_complete_model_is_outlined_without_its_weights(name: str, tmp_path: Path) -> None:
    model, processor = made(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")  # nothing of it is read
    outline, its_processor = outline_vlm(str(tmp_path), dtype=torch.bfloat16)
    family = family_of(outline)
    assert all(parameter.is_meta for parameter in outline.parameters())
    assert {p.dtype for p in outline.parameters()} <= {torch.bfloat16, torch.float32}
    freeze(outline, family, ["projector"])
    freeze(model, family, ["projector"])
    assert parameter_table(outline, family) == parameter_table(model, family)
    assert num_layers(outline, family) == num_layers(model, family)
    assert Pictures(its_processor).count((90, 30)) == Pictures(processor).count((90, 30))


def test_parts_are_outlined_as_they_would_be_joined(parts: tuple[str, str]) -> None:
    joined, processor = assemble_llava(*parts)
    outline, its_processor = outline_llava(*parts)
    shapes = {name: p.shape for name, p in outline.named_parameters()}
    assert shapes == {name: p.shape for name, p in joined.named_parameters()}
    assert outline.config.to_dict() == joined.config.to_dict()
    assert Pictures(its_processor).tokens() == Pictures(processor).tokens()


def test_missing_files_of_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 files of weights are missing.*model\.safetensors"):
        require_weights(str(tmp_path), remedy="model.vlm=PATH")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"missing.*Given: .*: model-00002-of-00002\.safetensors"):
        require_weights(str(tmp_path), remedy="model.vlm=PATH")
    save_file({"b": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    require_weights(str(tmp_path), remedy="model.vlm=PATH")
    require_weights("org/model", remedy="model.vlm=PATH")


def test_a_projector_of_other_shapes_is_refused_before_anything_is_loaded(
    parts: tuple[str, str], tmp_path: Path
) -> None:
    torch.save({"model.mm_projector.0.weight": torch.zeros(48, 48)}, tmp_path / "mm_projector.bin")
    base = BaseModel(llm=parts[0], vision_tower=parts[1], projector=str(tmp_path))
    with pytest.raises(UserError, match=r"\[48, 48\].*Allowed: .*\[32, 24\]"):
        base.outline(dtype=None)


@pytest.mark.parametrize(
    ("llm", "vision", "said"),
    [("vision", "vision", "Cannot load"), ("llm", "llm", "Not a CLIP vision tower"), ("none", "vision", "none")],
)
def test_wrong_parts_are_refused(parts: tuple[str, str], llm: str, vision: str, said: str) -> None:
    named = {"llm": parts[0], "vision": parts[1], "none": "/no/such/none"}
    with pytest.raises(UserError, match=said):
        outline_llava(named[llm], named[vision])


@pytest.mark.parametrize("join", [outline_llava, assemble_llava])
def test_a_language_model_that_scales_its_logits_is_refused(
    parts: tuple[str, str], tmp_path: Path, join: Callable[[str, str], object]
) -> None:
    """LLaVA's class has no such scale, so loss and answers would be those of another model."""
    llm = tiny_llm()
    fields = {key: getattr(llm.config, key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    scaled = GraniteForCausalLM(
        GraniteConfig(**fields, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, logits_scaling=8.0)
    )
    shutil.copytree(parts[0], tmp_path / "granite")
    scaled.save_pretrained(tmp_path / "granite")
    with pytest.raises(UserError, match=r"scales or caps its logits.*granite: logits_scaling 8\.0"):
        join(str(tmp_path / "granite"), parts[1])
