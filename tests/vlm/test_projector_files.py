"""A projector from a file is the projector that was saved; what does not fit is refused with both sides."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import tiny_picture
from tests.tiny_families import FAMILIES, made
from tga.errors import UserError
from tga.vlm.families import LLAVA, component, family_of
from tga.vlm.projector_files import import_projector, llava_names, read_projector


def with_other_projector(name: str) -> Any:
    """A copy of the family's model whose projector is another one."""
    model = copy.deepcopy(made(name)[0])
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in component(model, family_of(model).projector).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def projector_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in component(model, family_of(model).projector).state_dict().items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_projector_of_a_directory_is_taken_over(name: str, tmp_path: Path) -> None:
    source, target = with_other_projector(name), copy.deepcopy(made(name)[0])
    source.save_pretrained(tmp_path)
    import_projector(target, family_of(target), tmp_path)
    found, expected = projector_of(target), projector_of(source)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    one, other = target.state_dict(), made(name)[0].state_dict()
    changed = {key for key in one if not torch.equal(one[key], other[key])}
    assert changed and all(key.startswith(family_of(target).projector) for key in changed)


def test_a_checkpoint_of_a_run_and_a_single_file_are_read(tmp_path: Path) -> None:
    source = with_other_projector("llava")
    state = {f"model.{name}": value for name, value in source.state_dict().items() if "projector" in name}
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "step.ckpt")
    save_file({name.removeprefix("model.model."): value for name, value in state.items()}, tmp_path / "one.safetensors")
    for file in ("step.ckpt", "one.safetensors"):
        target = copy.deepcopy(made("llava")[0])
        import_projector(target, LLAVA, tmp_path / file)
        assert all(torch.equal(projector_of(target)[key], value) for key, value in projector_of(source).items())


@torch.no_grad()
def test_logits_are_equal_after_going_to_llavas_names_and_back(tmp_path: Path) -> None:
    """hf -> llava -> hf: the same logits to 1e-5."""
    source, target = with_other_projector("llava"), copy.deepcopy(made("llava")[0])
    own = projector_of(source)
    torch.save({name: own[inner] for name, inner in llava_names(LLAVA).items()}, tmp_path / "mm_projector.bin")
    import_projector(target, LLAVA, tmp_path)
    processor = made("llava")[1]
    inputs = processor(images=[tiny_picture()], text="<image>\nWhat is it?", return_tensors="pt")
    torch.testing.assert_close(target(**inputs).logits, source(**inputs).logits, rtol=0, atol=1e-5)
    assert not torch.allclose(made("llava")[0](**inputs).logits, source(**inputs).logits, atol=1e-2)


def test_another_width_is_refused_with_both_sides(tmp_path: Path) -> None:
    model = copy.deepcopy(made("llava")[0])
    state = {f"multi_modal_projector.{name}": value for name, value in projector_of(model).items()}
    state["multi_modal_projector.linear_1.weight"] = torch.zeros(32, 48)
    save_file(state, tmp_path / "model.safetensors")
    before = projector_of(model)
    with pytest.raises(UserError, match=r"linear_1\.weight \[32, 48\].*Allowed: .*linear_1\.weight \[32, 24\]"):
        import_projector(model, LLAVA, tmp_path)
    assert all(torch.equal(projector_of(model)[key], value) for key, value in before.items())


def test_the_projector_of_another_family_is_refused(tmp_path: Path) -> None:
    made("qwen2_5_vl")[0].save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds no projector.*multi_modal_projector"):
        import_projector(made("llava")[0], LLAVA, tmp_path)


def test_llavas_two_layers_do_not_fit_a_linear_projector(tmp_path: Path) -> None:
    model = made("instructblip")[0]
    own = projector_of(made("llava")[0])
    torch.save({name: own[inner] for name, inner in llava_names(LLAVA).items()}, tmp_path / "mm_projector.bin")
    with pytest.raises(UserError, match=r"0\.weight \[32, 24\].*Allowed: .*mm_projector\.weight \[32, 16\]"):
        import_projector(model, family_of(model), tmp_path)


def test_features_of_another_layer_are_refused(tmp_path: Path) -> None:
    model = copy.deepcopy(made("llava")[0])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_feature_layer"] = -1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"vision_feature_layer=-1.*Allowed: the model's vision_feature_layer=-2"):
        import_projector(model, LLAVA, tmp_path)


def test_a_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"no safetensors file.*model\.safetensors"):
        read_projector(tmp_path, LLAVA)
