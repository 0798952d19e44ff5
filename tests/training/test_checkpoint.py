"""Checkpoints: read back, put into a model, and refused when they do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_llava, tiny_llm, write_tiny_parts
from tga.errors import UserError
from tga.training.base_model import BaseModel
from tga.training.checkpoint import (
    FROZEN,
    frozen_sample,
    latest_checkpoint,
    put_weights,
    read_checkpoint,
    restore_model,
)

NAME = "model.multi_modal_projector.linear_1.bias"


def write(path: Path, base: BaseModel, value: torch.Tensor, **stated: str) -> Path:
    return write_weights(path, base, {NAME: value}, **stated)


def write_weights(path: Path, base: BaseModel, weights: dict[str, torch.Tensor], **stated: str) -> Path:
    hyper_parameters = {"base_model": base.located(), **stated}
    state = {**{"model." + name: value for name, value in weights.items()}, "centre": torch.ones(1, 2)}
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters, "global_step": 7}, path)
    return path


def test_a_checkpoint_brings_its_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_parts(tmp_path)
    monkeypatch.chdir(tmp_path)
    base = BaseModel(llm="llm", vision_tower="vision_tower", seed=3)
    path = write(tmp_path / "step-00000007.ckpt", base, torch.arange(32.0))
    monkeypatch.chdir("/")
    trained = read_checkpoint(path)
    assert trained.step == 7 and trained.base.llm == str(tmp_path / "llm") and trained.base.seed == 3
    assert trained.centre is not None and list(trained.weights) == [NAME]
    model, processor = restore_model(trained, dtype=torch.float32, attn_implementation="eager")
    assert torch.equal(model.get_parameter(NAME), torch.arange(32.0)) and not model.training
    fresh, _ = dataclasses.replace(trained.base).load(dtype=torch.float32, attn_implementation="eager")
    other = "model.multi_modal_projector.linear_2.weight"
    assert torch.equal(model.get_parameter(other), fresh.get_parameter(other))
    assert processor.image_token == "<image>"


def test_a_base_model_that_is_gone_is_named_with_its_checkpoint(tmp_path: Path) -> None:
    base = BaseModel(vlm=str(tmp_path / "gone" / "vlm"))
    trained = read_checkpoint(write(tmp_path / "step-00000007.ckpt", base, torch.zeros(32)))
    for dtype in (torch.float32, None):
        with pytest.raises(
            UserError, match=r"base model of the checkpoint .*step-00000007\.ckpt.*gone/vlm.*put the base"
        ):
            restore_model(trained, dtype=dtype, attn_implementation="eager")


def test_a_base_model_that_was_replaced_by_one_of_its_shapes_is_refused(tmp_path: Path) -> None:
    write_tiny_parts(tmp_path)
    base = BaseModel(llm=str(tmp_path / "llm"), vision_tower=str(tmp_path / "vision_tower"), seed=3)
    model, _ = base.load(dtype=torch.float32, attn_implementation="eager")
    weights = {name: value for name, value in model.named_parameters() if "projector" in name}
    stated = {FROZEN: frozen_sample(model, weights)}
    trained = read_checkpoint(write_weights(tmp_path / "step-00000007.ckpt", base, weights, **stated))
    silent = read_checkpoint(write_weights(tmp_path / "step-00000008.ckpt", base, weights))
    for dtype in (torch.float32, torch.bfloat16, torch.float16, None):
        restore_model(trained, dtype=dtype, attn_implementation="eager")
    language_model = tiny_llm()
    with torch.no_grad():
        language_model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    language_model.save_pretrained(tmp_path / "llm")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, None):
        with pytest.raises(UserError, match=r"has been replaced.*step-00000007\.ckpt.*llm.*put that model back"):
            restore_model(trained, dtype=dtype, attn_implementation="eager")
    restore_model(silent, dtype=None, attn_implementation="eager")  # of before: it does not say


@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16])
def test_a_language_model_stored_in_float16_beside_a_tower_in_float32(tmp_path: Path, trained_in: torch.dtype) -> None:
    """As Vicuna and CLIP are stored: what the export loads is rounded otherwise than what stood in the training."""
    write_tiny_parts(tmp_path)
    tiny_llm().half().save_pretrained(tmp_path / "llm")
    base = BaseModel(llm=str(tmp_path / "llm"), vision_tower=str(tmp_path / "vision_tower"))
    model, _ = base.load(dtype=trained_in, attn_implementation="eager")
    weights = {name: value for name, value in model.named_parameters() if "projector" in name}
    stated = {FROZEN: frozen_sample(model, weights)}
    trained = read_checkpoint(write_weights(tmp_path / "step-00000007.ckpt", base, weights, **stated))
    restored, _ = restore_model(trained, dtype=None, attn_implementation="eager")
    assert restored.dtype == torch.float16


def test_weights_of_another_projector_are_refused(tmp_path: Path) -> None:
    model, _ = tiny_llava()
    with pytest.raises(UserError, match=r"\[48\] in the checkpoint and \[32\] in the model.*Given: there"):
        put_weights(model, {NAME: torch.zeros(48)}, source="there")
    with pytest.raises(UserError, match="only the checkpoint has nothing.here"):
        put_weights(model, {"nothing.here": torch.zeros(1)}, source="there")


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint here"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "a.ckpt").write_bytes(b"something else")
    with pytest.raises(UserError, match="not a checkpoint of tga-train"):
        read_checkpoint(tmp_path / "a.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of tga-train"):
        read_checkpoint(tmp_path / "b.ckpt")


def test_the_last_checkpoint_is_the_one_of_most_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint here"):
        latest_checkpoint(tmp_path)
    for step in (9, 10, 100):
        (tmp_path / f"step-{step:08d}.ckpt").touch()
    assert latest_checkpoint(tmp_path).name == "step-00000100.ckpt"


def test_a_model_is_named_in_one_way() -> None:
    for names in ({}, {"llm": "a"}, {"llm": "a", "vision_tower": "b", "vlm": "c"}, {"llm": "a", "vlm": "c"}):
        with pytest.raises(UserError, match="llm and vision_tower, or vlm alone"):
            BaseModel(**names)  # type: ignore[arg-type]
