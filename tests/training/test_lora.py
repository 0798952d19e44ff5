"""Adapters: they start as nothing, they alone train, and merged they leave a plain model with the same answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.tiny import tiny_llava, write_tiny_llava_json, write_tiny_parts
from tga.data.collate import Collator
from tga.data.llava_json import load_llava_json
from tga.errors import UserError
from tga.training.base_model import BaseModel
from tga.training.checkpoint import read_checkpoint, restore_model, trainable_parameters
from tga.training.lora import LoraSettings, add_lora, merge_lora
from tga.training.prepare import active_checkpointing, prepare_model
from tga.training.run import fit
from tga.training.settings import TrainSettings
from tga.training.spans import pool_texts
from tga.vlm.families import family_of
from tga.vlm.freezing import freeze

SMALL = LoraSettings(rank=3, alpha=6, targets=("q_proj", "down_proj"))
IDS = torch.arange(5, 25)[None]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_adapters_start_as_nothing_train_alone_and_merge() -> None:
    model, _ = tiny_llava()
    family, before = family_of(model), logits(model)
    names = [name for name, _ in model.named_parameters()]
    freeze(model, family, ["projector"])
    add_lora(model, family, SMALL)
    torch.testing.assert_close(logits(model), before)
    adapters = {name: p for name, p in trainable_parameters(model).items() if "lora_" in name}
    assert len(adapters) == 3 * 2 * 2 and len(trainable_parameters(model)) == 12 + 4
    assert {p.shape[0] for name, p in adapters.items() if "lora_A" in name} == {3}
    with torch.no_grad():
        for name, parameter in adapters.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    changed = logits(model)
    assert not torch.allclose(changed, before, atol=1e-2)
    merge_lora(model, family)
    torch.testing.assert_close(logits(model), changed, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == names


def test_frozen_weights_stay_in_half_precision_and_what_trains_is_float32() -> None:
    model, _ = tiny_llava()
    model.to(torch.bfloat16)
    settings = TrainSettings(precision="bf16-mixed", gradient_checkpointing=True)
    prepare_model(model, family_of(model), settings, ["projector"], SMALL)
    trained = trainable_parameters(model)
    assert {p.dtype for p in trained.values()} == {torch.float32} and any("lora_B" in name for name in trained)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert active_checkpointing(model, family_of(model)) == (3, 3)
    model.eval()
    assert active_checkpointing(model, family_of(model)) == (0, 3)


def test_dropout_of_the_adapters_is_for_the_multimodal_forward_alone() -> None:
    model, processor = tiny_llava()
    family = family_of(model)
    settings = TrainSettings(gradient_checkpointing=True)
    prepare_model(
        model,
        family,
        settings,
        ["projector"],
        LoraSettings(rank=3, alpha=60, dropout=0.5, targets=("q_proj", "down_proj")),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not torch.equal(logits(model), logits(model))
    collator = Collator(processor, "vicuna_v1", image_tokens=4, retrieved="none", max_length=200)
    first, again = (pool_texts(model, family, collator, ["A red car."], (1, 2, 3), "cpu")[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(logits(model), logits(model)), "and it is on again afterwards"


def test_a_run_with_adapters_comes_back_as_a_plain_model(tmp_path: Path) -> None:
    """The checkpoint holds projector and adapters only; restored, it answers as at the end of the training."""
    write_tiny_parts(tmp_path)
    write_tiny_llava_json(tmp_path, n=4)
    base = BaseModel(llm=str(tmp_path / "llm"), vision_tower=str(tmp_path / "vision_tower"))
    model, processor = base.load(dtype=torch.float32, attn_implementation="eager")
    collator = Collator(processor, "vicuna_v1", image_tokens=4, retrieved="none", max_length=200)
    settings = TrainSettings(batch_size=2, learning_rate=1e-2, projector_learning_rate=1e-3, accelerator="cpu")
    result = fit(
        model, family_of(model), collator, load_llava_json(tmp_path / "train.json", tmp_path / "images"), [], settings,
        tmp_path / "run", train=["projector"], centred=False, calibration=None, lora=SMALL, ckpt_path=None,
        hyper_parameters={"base_model": base.located(), "lora": SMALL.plain()}, console=Console(quiet=True),
    )  # fmt: skip
    trained = read_checkpoint(result.checkpoint)
    assert len(trained.weights) == 16 and result.trainable_parameters == sum(
        v.numel() for v in trained.weights.values()
    )
    restored, _ = restore_model(trained, dtype=torch.float32, attn_implementation="eager")
    torch.testing.assert_close(logits(restored), logits(model.eval()), rtol=1e-4, atol=1e-5)
    plain, _ = base.load(dtype=torch.float32, attn_implementation="eager")
    assert not torch.allclose(logits(restored), logits(plain), atol=1e-3)
    assert [name for name, _ in restored.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_what_cannot_be_adapted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_llava()
    family = family_of(model)
    with pytest.raises(UserError, match="nose_proj.*q_proj"):
        add_lora(model, family, LoraSettings(targets=("nose_proj",)))
    with pytest.raises(UserError, match="model.lora=null"):
        prepare_model(model, family, TrainSettings(), ["projector", "language_model"], SMALL)
    with pytest.raises(UserError, match="rank >= 1"):
        LoraSettings(rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"tga-vlm\[lora\]"):
        add_lora(model, family, SMALL)
