"""ReGap in a run: what it measures, where its gradient goes, how its weight survives a stop, which stage refuses it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.tiny import tiny_llava, write_tiny_llava_json
from tests.training.test_module import CAPTIONS, build, gradients
from tga.alignment.objective import Objective
from tga.alignment.regap import ReGap
from tga.alignment.tga import TGA
from tga.data.collate import Collator
from tga.data.llava_json import load_llava_json
from tga.errors import UserError
from tga.training.callbacks import read_metrics
from tga.training.checkpoint import read_checkpoint
from tga.training.run import fit
from tga.training.settings import FitResult, TrainSettings
from tga.vlm.families import family_of

MEASURED = ("loss", "loss_lm", "loss_regap", "regap_alpha", "regap_gap", "regap_log_norm_ratio")


def test_the_gap_is_that_between_projector_output_and_caption_embeddings(tmp_path: Path) -> None:
    module, batch = build(tmp_path, objectives=[ReGap(weight=1.0)])
    tokenizer, model = tiny_llava()[1].tokenizer, module.model
    assert batch.pixel_values is not None
    with torch.no_grad():
        features = model.get_image_features(pixel_values=batch.pixel_values).pooler_output
        gaps, ratios = [], []
        for image, caption in zip(features, CAPTIONS, strict=True):
            ids = tokenizer(caption, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
            text = model.get_input_embeddings()(ids).double().numpy()
            v = image.double().numpy()
            gaps.append(np.mean([np.linalg.norm(a - b) for a in v for b in text]))
            ratios.append(math.log(np.linalg.norm(v, axis=1).mean() / np.linalg.norm(text, axis=1).mean()))
        losses = module.step_losses(batch, 0.0)
        figures = module.training_step(batch, 0)["figures"]
    assert losses["regap"].item() == pytest.approx(np.mean(gaps), rel=1e-5)
    assert figures["regap_gap"].item() == pytest.approx(np.mean(gaps), rel=1e-5)
    assert figures["regap_log_norm_ratio"].item() == pytest.approx(np.mean(ratios), rel=1e-5)
    assert figures["regap_alpha"] == 1.0


@pytest.mark.parametrize("pairing", ["pairwise", "mean_to_mean"])
def test_its_gradient_reaches_the_projector_and_matches_finite_differences(pairing: str, tmp_path: Path) -> None:
    module, batch = build(tmp_path, lm_weight=0.0, objectives=[ReGap(pairing=pairing, weight=0.5)])
    module.double()
    assert batch.pixel_values is not None
    batch.pixel_values = batch.pixel_values.double()
    weight = module.model.get_parameter("model.multi_modal_projector.linear_1.weight")

    def gap() -> Tensor:
        return module.step_losses(batch, 0.0)["regap"]

    gap().backward()
    assert len(gradients(module)) == 4 and weight.grad is not None and weight.grad.norm() > 1e-3
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-5
    with torch.no_grad():
        weight.add_(direction, alpha=step)
        above = gap()
        weight.sub_(direction, alpha=2 * step)
        below = gap()
    torch.testing.assert_close((above - below) / (2 * step), (weight.grad * direction).sum(), rtol=1e-6, atol=1e-9)


def test_it_composes_with_tga(tmp_path: Path) -> None:
    module, batch = build(tmp_path, objectives=[ReGap(weight=1.0), TGA((1, 3))])
    losses = module.step_losses(batch, 0.0)
    alone = [build(tmp_path, objectives=[o])[0].step_losses(batch, 0.0) for o in (ReGap(weight=1.0), TGA((1, 3)))]
    assert set(losses) == {"lm", "regap", "tga_pair", "tga_rank"}
    for name, value in {**alone[0], **alone[1]}.items():
        torch.testing.assert_close(losses[name], value)


def run(
    work: Path, run_dir: Path, objectives: list[Objective], *, train: tuple[str, ...] = ("projector",),
    ckpt_path: str | None = None, centred: bool = False, **settings: Any,
) -> tuple[FitResult, list[dict[str, float]]]:  # fmt: skip
    """Twelve steps of two samples with a checkpoint after each; the warm-up of `ReGap(warmup=0.5)` has six of them."""
    write_tiny_llava_json(work, n=8)
    model, processor = tiny_llava()
    chosen = {"epochs": 3, "batch_size": 2, "save_every": 1, "keep_checkpoints": 99, "log_every": 1, **settings}
    result = fit(
        model, family_of(model), Collator(processor, "plain", image_tokens=4, retrieved="none", max_length=128),
        load_llava_json(work / "train.json", work / "images"), objectives,
        TrainSettings(accelerator="cpu", seed=1, **chosen), run_dir, train=train, centred=centred, calibration=None,
        hyper_parameters={"base_model": {"vlm": "tiny"}}, ckpt_path=ckpt_path, console=Console(quiet=True),
    )  # fmt: skip
    return result, read_metrics(run_dir / "metrics.jsonl")


def test_alpha_comes_from_the_warm_up_and_survives_a_stop_in_it_and_after_it(tmp_path: Path) -> None:
    result, rows = run(tmp_path, tmp_path / "straight", [ReGap(warmup=0.5, decay=0.9), TGA((0, 2))], centred=True)
    lm = gap = 0.0
    for row in rows[:6]:
        assert row["regap_alpha"] == 0.0 and row["loss_regap"] == 0.0
        lm, gap = 0.9 * lm + 0.1 * row["loss_lm"], 0.9 * gap + 0.1 * row["regap_gap"]
    for row in rows[6:]:
        assert row["regap_alpha"] == pytest.approx(lm / gap, rel=1e-6)
        assert row["loss_regap"] == pytest.approx(row["regap_alpha"] * row["regap_gap"], rel=1e-6)
    assert result.figures["regap_alpha"] == rows[-1]["regap_alpha"] and "tga_cosine" in result.figures
    end = tmp_path / "straight" / "checkpoints" / "step-00000012.ckpt"
    expected = torch.load(end, weights_only=True)["objectives"]["ReGap"]
    assert expected["alpha"] == pytest.approx(lm / gap, rel=1e-6)
    for step in (3, 6, 9):  # within the warm-up, at its end, after it
        there = tmp_path / f"from-{step}"
        ckpt_path = str(tmp_path / "straight" / "checkpoints" / f"step-{step:08d}.ckpt")
        objectives = [ReGap(warmup=0.5, decay=0.9), TGA((0, 2))]
        again, repeated = run(tmp_path, there, objectives, centred=True, ckpt_path=ckpt_path)
        assert [[row[key] for key in MEASURED] for row in repeated] == [[r[k] for k in MEASURED] for r in rows[step:]]
        weights = read_checkpoint(again.checkpoint).weights
        assert all(torch.equal(weights[name], value) for name, value in read_checkpoint(end).weights.items())
        assert torch.load(again.checkpoint, weights_only=True)["objectives"]["ReGap"] == expected


def test_a_checkpoint_of_other_objectives_is_refused(tmp_path: Path) -> None:
    result, _ = run(tmp_path, tmp_path / "one", [TGA((0,))], max_steps=1)
    with pytest.raises(UserError, match=r"other objectives. Given: \[\]. Allowed: \['ReGap'\]"):
        run(tmp_path, tmp_path / "two", [ReGap()], ckpt_path=str(result.checkpoint), max_steps=1)


def test_it_is_refused_where_the_language_model_trains_unless_forced(tmp_path: Path) -> None:
    both = ("projector", "language_model")
    with pytest.raises(UserError, match=r"ReGap.*model\.train=\[projector\].*alignment\.regap\.force=true"):
        run(tmp_path, tmp_path / "no", [ReGap()], train=both, max_steps=1)
    assert not (tmp_path / "no").exists()
    result, rows = run(tmp_path, tmp_path / "yes", [ReGap(force=True, weight=1.0)], train=both, max_steps=2)
    assert result.steps == 2 and rows[0]["loss_regap"] > 0


def test_gradient_checkpointing_changes_neither_gap_nor_gradient(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 3, "gradient_norm_every": 1}
    _, plain = run(tmp_path, tmp_path / "plain", [ReGap(warmup=0.0)], **options)
    _, spared = run(tmp_path, tmp_path / "spared", [ReGap(warmup=0.0)], gradient_checkpointing=True, **options)
    for key in ("regap_gap", "guide_gradient_norm"):
        assert [row[key] for row in spared] == pytest.approx([row[key] for row in plain], rel=1e-5)
    assert plain[2]["guide_gradient_norm"] > 0
