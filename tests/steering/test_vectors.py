"""Vectors in a file: what goes in comes out, and no other model takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.steering.requests import random_shifts
from tests.tiny import tiny_llava
from tga.errors import UserError
from tga.steering.vectors import Vectors, describe_model, load_vectors, read_vectors, save_vectors
from tga.vlm.families import family_of


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, _ = tiny_llava()
    vectors = Vectors(
        random_shifts([1, 3]), describe_model(model, family_of(model), "the/model"), {"picture": "blank"}, 0.4, "a rule"
    )
    return save_vectors(tmp_path / "new" / "vectors.safetensors", vectors)


def test_what_goes_in_comes_out(saved: Path):
    model, _ = tiny_llava()
    found = load_vectors(saved, model, family_of(model))
    expected = random_shifts([1, 3])
    assert sorted(found.shifts) == [1, 3]
    assert all(torch.equal(found.shifts[layer], expected[layer]) for layer in expected)
    assert (found.alpha, found.rule, found.origin) == (0.4, "a rule", {"picture": "blank"})
    assert found.model["width"] == "32" and found.model["decoder_layers"] == "3" and found.model["name"] == "the/model"
    assert sorted(load_file(saved)) == ["layer_1", "layer_3"]
    assert [path.name for path in saved.parent.iterdir()] == ["vectors.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_model_is_known_in_every_dtype(saved: Path, dtype: torch.dtype):
    model, _ = tiny_llava()
    family = family_of(model)
    load_vectors(saved, model.to(dtype), family)
    load_vectors(saved, model.to(torch.float32), family)  # as an export in half precision comes back
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias += 0.25
    with pytest.raises(UserError, match=r"of another model \(weights differ\)"):
        load_vectors(saved, model, family)


def test_vectors_of_another_model_are_one_error(saved: Path):
    model, _ = tiny_llava()
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.up_proj.weight *= 1.5
    with pytest.raises(UserError, match=r"of another model \(weights differ\).*the/model.*tga-steer"):
        load_vectors(saved, model, family_of(model))
    del model.model.language_model.layers[2]
    with pytest.raises(UserError, match=r"\(decoder_layers, weights differ\).*decoder_layers 3.*decoder_layers 2"):
        load_vectors(saved, model, family_of(model))


def test_a_width_that_differs_is_named(saved: Path):
    model, _ = tiny_llava()
    vectors = read_vectors(saved)
    other = Vectors(vectors.shifts, {**vectors.model, "width": "4096"})
    path = save_vectors(saved.with_name("wide.safetensors"), other)
    with pytest.raises(UserError, match=r"\(width differ\).*width 4096.*width 32"):
        load_vectors(path, model, family_of(model))


def test_other_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no file of steering vectors.*steering.vectors=PATH"):
        read_vectors(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("no vectors here")
    with pytest.raises(UserError, match="cannot be read"):
        read_vectors(tmp_path / "text.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="Not a file of steering vectors.*tga-cmrm-2"):
        read_vectors(tmp_path / "weights.safetensors")


def test_an_interrupted_writer_leaves_the_older_file(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = saved.read_bytes()

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tga.steering.vectors.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_vectors(saved, Vectors({1: torch.ones(4)}, {}))
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1
