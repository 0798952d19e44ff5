"""What is exported is what was trained: the checkpoint's weights on the base model that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.export.parts import trained_model, write_checkpoint
from tga.errors import UserError
from tga.export.card import ModelCard
from tga.export.hf import export_hf
from tga.export.llava import export_llava
from tga.export.source import base_llm_config, source_from_checkpoint, source_from_model
from tga.training.base_model import BaseModel
from tga.vlm.families import family_of

CARD = ModelCard("tiny", "an-llm", "a-tower", "tga")


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_gives_the_trained_model(tmp_path: Path) -> None:
    base, model, _ = trained_model(tmp_path / "parts")
    path = write_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000007.ckpt", base, model)
    for given in (path, path.parent, path.parent.parent):
        source = source_from_checkpoint(given, dtype=None)
        assert same_weights(source.model, model)
        assert not source.model.training
        assert source.trained is not None and len(source.trained) == 4
        assert source.hyper_parameters["learning_rate"] == 0.002


def test_a_checkpoint_of_another_model_names_both_sides(tmp_path: Path) -> None:
    base, model, _ = trained_model(tmp_path / "parts")
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(20, 32)
    path = write_checkpoint(tmp_path / "other.ckpt", base, model)
    with pytest.raises(UserError, match=r"\[32, 20\] in the checkpoint and \[32, 24\] in the model"):
        source_from_checkpoint(path, dtype=None)


def test_llavas_projector_gives_the_trained_model(tmp_path: Path) -> None:
    base, model, _ = trained_model(tmp_path / "parts")
    directory = export_llava(model, family_of(model), tmp_path / "llava", CARD, base_llm_config(base))
    source = source_from_model(base, projector=directory, dtype=torch.float32)
    assert same_weights(source.model, model)
    assert source.trained is None


def test_a_complete_model_is_its_own_source(tmp_path: Path) -> None:
    _, model, processor = trained_model(tmp_path / "parts")
    directory = export_hf(model, processor, tmp_path / "vlm", CARD, verify=False)
    source = source_from_model(BaseModel(vlm=str(directory)), projector=None, dtype=None)
    assert same_weights(source.model, model)


def test_parts_without_a_projector_are_refused(tmp_path: Path) -> None:
    base, _, _ = trained_model(tmp_path)
    with pytest.raises(UserError, match="no trained projector"):
        source_from_model(base, projector=None, dtype=None)


def test_the_dtype_is_the_stored_one_unless_one_is_given(tmp_path: Path) -> None:
    base, model, processor = trained_model(tmp_path / "parts")
    assert base.stored_dtype() == torch.float32
    directory = export_hf(model.bfloat16(), processor, tmp_path / "vlm", CARD, verify=False)
    half = BaseModel(vlm=str(directory))
    assert half.stored_dtype() == torch.bfloat16
    assert source_from_model(half, projector=None, dtype=None).model.lm_head.weight.dtype == torch.bfloat16
    assert source_from_model(half, projector=None, dtype=torch.float32).model.lm_head.weight.dtype == torch.float32
