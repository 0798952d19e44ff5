"""A projector of the right shapes from another language model or vision tower is refused, whatever form it has."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import tiny_clip_vision, tiny_llava, write_tiny_parts
from tests.tiny_families import FAMILIES, made
from tga.errors import UserError
from tga.vlm.families import LLAVA, component, family_of
from tga.vlm.projector_files import import_projector, llava_names
from tga.vlm.projector_origin import origin

NAMES = "language model num_hidden_layers=7.*Allowed: the model's language model num_hidden_layers=3"


def projector() -> dict[str, torch.Tensor]:
    return dict(tiny_llava()[0].model.multi_modal_projector.state_dict())


def change(file: Path, key: str, value: object, *, inside: str | None = None) -> None:
    config = json.loads(file.read_text())
    (config if inside is None else config[inside])[key] = value
    file.write_text(json.dumps(config))


def llava_file(directory: Path) -> Path:
    """LLaVA's file with the language model's config beside it."""
    write_tiny_parts(directory)
    own = projector()
    torch.save({name: own[inner] for name, inner in llava_names(LLAVA).items()}, directory / "mm_projector.bin")
    shutil.copy(directory / "llm" / "config.json", directory / "config.json")
    return directory / "config.json"


def checkpoint(directory: Path, **base_model: str) -> Path:
    state = {f"model.model.multi_modal_projector.{name}": value for name, value in projector().items()}
    content: dict[str, Any] = {"state_dict": state, "hyper_parameters": {"base_model": base_model}}
    torch.save(content, directory / "step-00000003.ckpt")
    return directory / "step-00000003.ckpt"


def refused(path: Path, message: str) -> None:
    model = tiny_llava()[0]
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter += 1
    kept = {name: value.clone() for name, value in model.model.multi_modal_projector.state_dict().items()}
    with pytest.raises(UserError, match=message):
        import_projector(model, LLAVA, path)
    found = model.model.multi_modal_projector.state_dict()
    assert all(torch.equal(found[name], value) for name, value in kept.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_own_directory_of_every_family_tells_its_parts(name: str, tmp_path: Path) -> None:
    model = copy.deepcopy(made(name)[0])
    model.save_pretrained(tmp_path)
    text, vision = origin(tmp_path)
    assert text["hidden_size"] == model.config.get_text_config().hidden_size and vision
    import_projector(model, family_of(model), tmp_path)
    change(tmp_path / "config.json", "num_hidden_layers", 9, inside="text_config")
    own = component(model, family_of(model).projector)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    with pytest.raises(UserError, match="num_hidden_layers=9.*Allowed: the model's language model num_hidden_layers=3"):
        import_projector(model, family_of(model), tmp_path)
    assert all(torch.equal(own.state_dict()[key], value) for key, value in before.items())


def test_llavas_file_tells_its_language_model(tmp_path: Path) -> None:
    config = llava_file(tmp_path)
    import_projector(tiny_llava()[0], LLAVA, tmp_path / "mm_projector.bin")
    change(config, "num_hidden_layers", 7)
    refused(tmp_path / "mm_projector.bin", NAMES)
    refused(tmp_path, NAMES)


def test_a_vision_tower_of_other_patches_is_refused(tmp_path: Path) -> None:
    tiny_llava()[0].save_pretrained(tmp_path)
    change(tmp_path / "config.json", "image_size", 56, inside="vision_config")
    refused(tmp_path, "vision tower image_size=56.*Allowed: the model's vision tower image_size=28")


def test_a_checkpoint_tells_the_base_models_that_it_names(tmp_path: Path) -> None:
    llm, tower = write_tiny_parts(tmp_path)
    file = checkpoint(tmp_path, llm=str(llm), vision_tower=str(tower))
    import_projector(tiny_llava()[0], LLAVA, file)
    change(llm / "config.json", "num_hidden_layers", 7)
    refused(file, NAMES)
    tiny_clip_vision(image=56).save_pretrained(tower)
    refused(file, "vision tower image_size=56")
    tiny_llava()[0].save_pretrained(tmp_path / "vlm")
    change(tmp_path / "vlm" / "config.json", "num_hidden_layers", 7, inside="text_config")
    refused(checkpoint(tmp_path, vlm=str(tmp_path / "vlm")), NAMES)


def test_what_tells_nothing_is_taken(tmp_path: Path) -> None:
    """Base models by hub ids, or gone since; a file of tensors alone."""
    import_projector(tiny_llava()[0], LLAVA, checkpoint(tmp_path, llm="lmsys/vicuna-7b-v1.5", vision_tower="gone"))
    save_file({f"multi_modal_projector.{k}": v for k, v in projector().items()}, tmp_path / "one.safetensors")
    import_projector(tiny_llava()[0], LLAVA, tmp_path / "one.safetensors")
