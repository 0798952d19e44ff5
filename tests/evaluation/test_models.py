"""Which model a path names: a checkpoint, a run, a directory, a hub id, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.export.parts import trained_model, write_checkpoint
from tests.tiny import tiny_llava, tiny_llm, write_tiny_parts
from tga.errors import UserError
from tga.evaluation.models import check_models, load_language_model, load_model

SETTINGS = {"dtype": "auto", "device": "cpu", "attn_implementation": "eager"}


def test_a_checkpoint_and_its_run_are_the_trained_model(tmp_path: Path) -> None:
    base, trained, _ = trained_model(tmp_path / "parts")
    checkpoint = write_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000007.ckpt", base, trained)
    for path in (checkpoint, tmp_path / "run", tmp_path / "run" / "checkpoints"):
        model, processor = load_model(str(path), **SETTINGS)
        assert not model.training and processor.tokenizer.eos_token_id is not None
        for name, value in trained.named_parameters():
            assert torch.equal(model.get_parameter(name), value), name


def test_a_directory_is_loaded_in_the_dtype_asked_for(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), **SETTINGS)[0].dtype == torch.float32, "auto on a CPU"
    loaded, _ = load_model(str(tmp_path), **{**SETTINGS, "dtype": "bfloat16"})
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16())


def test_all_that_cannot_be_found_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a: .*empty.*b: a/b/c.*hub id"):
        check_models({"a": str(tmp_path / "empty"), "b": "a/b/c", "c": "org/model"})
    check_models({"c": "org/model"})


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int8.*bfloat16"):
        load_model("org/model", **{**SETTINGS, "dtype": "int8"})


def test_a_language_model_alone(tmp_path: Path) -> None:
    llm, _ = write_tiny_parts(tmp_path)
    model, tokenizer = load_language_model(str(llm), **{**SETTINGS, "dtype": "bfloat16"})
    assert not model.training and model.dtype == torch.bfloat16 and tokenizer.pad_token_id is not None
    assert torch.equal(model.lm_head.weight, tiny_llm().lm_head.weight.bfloat16())
    with pytest.raises(UserError, match="no such directory.*model.llm=PATH"):
        load_language_model(str(tmp_path / "none"), **SETTINGS)
