"""LLaVA's layout against LLaVA's way of reading it, rebuilt here from its loader's description."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlavaConfig, MistralConfig

from tests.export.parts import trained_model
from tga.errors import UserError
from tga.export.card import ModelCard
from tga.export.llava import export_llava, llava_config, projector_state
from tga.vlm.families import LLAVA, family_of
from tga.vlm.projector_files import import_projector, read_projector

CARD = ModelCard(name="tiny", base_llm="an-llm", base_vision_tower="a-tower", method="tga")


def llavas_projector(config: dict[str, Any]) -> nn.Sequential:
    """The module that LLaVA builds for `mlp<depth>x_gelu`."""
    depth = re.fullmatch(r"mlp(\d+)x_gelu", config["mm_projector_type"])
    assert depth is not None
    layers: list[nn.Module] = [nn.Linear(config["mm_hidden_size"], config["hidden_size"])]
    for _ in range(1, int(depth.group(1))):
        layers += [nn.GELU(), nn.Linear(config["hidden_size"], config["hidden_size"])]
    return nn.Sequential(*layers)


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Any, Path, Path]:
    base, model, _ = trained_model(tmp_path / "parts")
    llm_config = AutoConfig.from_pretrained(base.llm)
    directory = export_llava(model, family_of(model), tmp_path / "llava-tiny", CARD, llm_config)
    return model, directory, tmp_path


def test_llavas_loader_gets_the_same_function(exported: tuple[Any, Path, Path]) -> None:
    model, directory, _ = exported
    config = json.loads((directory / "config.json").read_text())
    weights = torch.load(directory / "mm_projector.bin", weights_only=True)
    root = nn.Module()
    root.model = nn.Module()
    root.model.mm_projector = llavas_projector(config)
    missing, unexpected = root.load_state_dict(weights, strict=True)
    assert not missing and not unexpected
    features = torch.randn(3, 4, config["mm_hidden_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model.model.multi_modal_projector(features), root.model.mm_projector(features)
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


def test_the_file_holds_llavas_names_and_nothing_else(exported: tuple[Any, Path, Path]) -> None:
    _, directory, _ = exported
    found = {name: list(tensor.shape) for name, tensor in read_projector(directory, LLAVA).items()}
    assert found == {
        "model.mm_projector.0.weight": [32, 24],
        "model.mm_projector.0.bias": [32],
        "model.mm_projector.2.weight": [32, 32],
        "model.mm_projector.2.bias": [32],
    }


def test_the_config_is_the_base_llms_with_llavas_keys(exported: tuple[Any, Path, Path]) -> None:
    model, directory, tmp_path = exported
    config = json.loads((directory / "config.json").read_text())
    base = json.loads((tmp_path / "parts" / "llm" / "config.json").read_text())
    expected = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 24,
        "hidden_size": 32,
        "mm_vision_tower": "a-tower",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "vocab_size": base["vocab_size"],
    }
    assert {key: config.get(key) for key in expected} == expected
    for key in ("num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert config[key] == base[key]


def test_an_import_brings_back_the_same_values(exported: tuple[Any, Path, Path]) -> None:
    model, directory, _ = exported
    family = family_of(model)
    before = projector_state(model, family)
    for path in (directory, directory / "mm_projector.bin"):
        with torch.no_grad():
            for parameter in model.model.multi_modal_projector.parameters():
                parameter.zero_()
        import_projector(model, family, path)
        after = projector_state(model, family)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_float16_projector_takes_the_models_dtype(exported: tuple[Any, Path, Path]) -> None:
    model, directory, tmp_path = exported
    file = tmp_path / "half.bin"
    torch.save({name: tensor.half() for name, tensor in read_projector(directory, LLAVA).items()}, file)
    import_projector(model, family_of(model), file)
    projector = model.model.multi_modal_projector
    assert projector.linear_1.weight.dtype == torch.float32
    expected = read_projector(directory, LLAVA)["model.mm_projector.0.weight"].half().float()
    assert torch.equal(projector.linear_1.weight, expected)


def test_a_projector_of_another_llm_is_refused_with_both_sides(exported: tuple[Any, Path, Path]) -> None:
    model, directory, tmp_path = exported
    state = read_projector(directory, LLAVA)
    state["model.mm_projector.2.weight"] = torch.zeros(48, 48)
    file = tmp_path / "other.bin"
    torch.save(state, file)
    before = projector_state(model, family_of(model))
    with pytest.raises(UserError) as caught:
        import_projector(model, family_of(model), file)
    message = str(caught.value)
    assert "model.mm_projector.2.weight [48, 48]" in message and "model.mm_projector.2.weight [32, 32]" in message
    after = projector_state(model, family_of(model))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_linear_projector_is_refused_by_its_names(exported: tuple[Any, Path, Path]) -> None:
    model, _, tmp_path = exported
    file = tmp_path / "linear.bin"
    torch.save({"model.mm_projector.weight": torch.zeros(32, 24), "model.mm_projector.bias": torch.zeros(32)}, file)
    with pytest.raises(UserError, match=r"Given: .*model\.mm_projector\.bias \[32\].*Allowed: .*mm_projector\.0\.bias"):
        import_projector(model, family_of(model), file)


def test_features_of_another_layer_are_refused(exported: tuple[Any, Path, Path]) -> None:
    model, directory, _ = exported
    config = json.loads((directory / "config.json").read_text())
    config["mm_vision_select_layer"] = -1
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"mm_vision_select_layer=-1.*Allowed: the model's mm_vision_select_layer=-2"):
        import_projector(model, family_of(model), directory)


class Payload:
    """Something that a file of tensors has no business holding."""


def test_a_file_that_could_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.0.weight": Payload()}, file)
    with pytest.raises(UserError, match="plain tensors"):
        read_projector(file, LLAVA)
    file.write_bytes(b"not a zip, not a pickle")
    with pytest.raises(UserError, match="plain tensors"):
        read_projector(file, LLAVA)
    with pytest.raises(UserError, match=r"no projector file.*absent"):
        read_projector(tmp_path / "absent", LLAVA)


@pytest.mark.parametrize(
    ("key", "value", "named"), [("projector_hidden_act", "relu", "relu"), ("vision_feature_layer", [-2, -1], "several")]
)
def test_what_llava_cannot_hold_is_refused(tmp_path: Path, key: str, value: object, named: str) -> None:
    base, model, _ = trained_model(tmp_path / "parts")
    llm_config = AutoConfig.from_pretrained(base.llm)
    with pytest.raises(UserError, match=r"vocabulary LLaVA's config has to name.*llm_name="):
        export_llava(model, family_of(model), tmp_path / "llava-tiny", CARD)
    setattr(model.config, key, value)
    with pytest.raises(UserError, match=f"{named}.*format=hf"):
        export_llava(model, family_of(model), tmp_path / "llava-tiny", CARD, llm_config)
    assert not (tmp_path / "llava-tiny").exists()


def test_the_rotary_settings_stand_where_llavas_transformers_looks(tmp_path: Path) -> None:
    """4.37 reads rope_theta and rope_scaling from the top; what it does not find there it takes from its defaults."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    far = MistralConfig(**sizes, vocab_size=100, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    scaled = LlamaConfig(
        **sizes, vocab_size=100, rope_parameters={"rope_type": "linear", "rope_theta": 5e4, "factor": 4.0}
    )
    found = []
    for text in (far, scaled):
        whole = LlavaConfig(text_config=text, image_token_index=100, vision_feature_layer=-2)
        found.append(llava_config(whole, CARD, text))
    assert found[0]["rope_theta"] == 1e6 and "rope_scaling" not in found[0] and "rope_parameters" not in found[0]
    assert found[1]["rope_theta"] == 5e4 and found[1]["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert [config["model_type"] for config in found] == ["llava_mistral", "llava_llama"]


def test_only_what_llava_serves_is_said_to_be_served(exported: tuple[Any, Path, Path], tmp_path: Path) -> None:
    model, directory, _ = exported
    assert "--model-base" in (directory / "README.md").read_text()
    model.config.text_config.model_type = "mistral"
    llm_config = AutoConfig.from_pretrained(tmp_path / "parts" / "llm")
    other = export_llava(model, family_of(model), tmp_path / "llava-mistral", CARD, llm_config)
    card = (other / "README.md").read_text()
    assert "--model-base" not in card and "--pretrain_mm_mlp_adapter" in card
