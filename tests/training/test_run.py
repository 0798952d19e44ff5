"""`fit` beyond what the resume test shows: accumulation, limits, half precision, gradient checkpointing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.tiny import tiny_llava, write_tiny_llava_json
from tga.alignment.tga import TGA
from tga.data.collate import Collator
from tga.data.llava_json import load_llava_json
from tga.errors import UserError
from tga.training.callbacks import read_metrics
from tga.training.run import fit
from tga.training.settings import FitResult, TrainSettings
from tga.vlm.families import family_of


def run(
    work: Path, *, dtype: torch.dtype = torch.float32, stored_features: bool = False, **settings: Any
) -> tuple[FitResult, list[dict[str, float]]]:
    """Train on seven samples in batches of two (the last one of an epoch has one sample)."""
    run_dir = work / "_".join(map(str, settings.values()))
    write_tiny_llava_json(work, n=7)
    model, processor = tiny_llava()
    collator = Collator(processor, "plain", image_tokens=4, retrieved="none", max_length=128)
    chosen = {"batch_size": 2, "log_every": 1, "accelerator": "cpu", "seed": 1, **settings}
    result = fit(
        model.to(dtype), family_of(model), collator, load_llava_json(work / "train.json", work / "images"),
        [TGA((0, 2))], TrainSettings(**chosen), run_dir, train=["projector"], centred=False, calibration=None,
        hyper_parameters={"base_model": {"vlm": "tiny"}}, ckpt_path=None, console=Console(quiet=True),
        stored_features=stored_features,
    )  # fmt: skip
    return result, read_metrics(run_dir / "metrics.jsonl")


def test_accumulated_batches_make_fewer_steps(tmp_path: Path) -> None:
    result, rows = run(tmp_path, accumulate_batches=3)
    assert (result.steps, result.samples) == (2, 7)  # batches 1-3, and batch 4 alone
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["learning_rate"] == pytest.approx(1e-3) and rows[0]["samples"] == 6


def test_max_steps_ends_the_run_and_its_schedule(tmp_path: Path) -> None:
    result, rows = run(tmp_path, max_steps=2, epochs=5, min_lr_ratio=0.0, warmup_ratio=0.0)
    assert result.steps == 2 and result.checkpoint.name == "step-00000002.ckpt"
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 5e-4])


def test_gradient_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    _, plain = run(tmp_path, gradient_checkpointing=False)
    _, spared = run(tmp_path, gradient_checkpointing=True)
    assert [row["loss"] for row in spared] == pytest.approx([row["loss"] for row in plain], rel=1e-5)
    assert [row["guide_gradient_norm"] for row in spared] == [row["guide_gradient_norm"] for row in plain]


def test_bf16_stays_near_float32_and_trains_float32_weights(tmp_path: Path) -> None:
    _, full = run(tmp_path, precision="32-true")
    result, half = run(tmp_path, precision="bf16-mixed", dtype=torch.bfloat16)
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in full], rel=0.05)
    weights = torch.load(result.checkpoint, weights_only=True)["state_dict"]
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_half_precision_weights_need_mixed_precision(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.dtype=bfloat16.*bf16-mixed"):
        run(tmp_path, dtype=torch.bfloat16)


def test_the_directory_of_another_run_is_left_alone(tmp_path: Path) -> None:
    result, _ = run(tmp_path, max_steps=1)
    before = result.checkpoint.read_bytes()
    with pytest.raises(UserError, match="another run.*ckpt_path=last"):
        run(tmp_path, max_steps=1)
    assert result.checkpoint.read_bytes() == before
