"""Stored text targets give the step that online ones give, and leave the language model alone."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.tiny import tiny_llava, write_tiny_llava_json
from tga.alignment.objective import pooled_layers
from tga.alignment.regap import ReGap
from tga.alignment.tga import TGA
from tga.data.collate import Collator
from tga.data.llava_json import load_llava_json
from tga.data.sample import Sample
from tga.training.callbacks import read_metrics
from tga.training.module import AlignmentModule
from tga.training.run import fit
from tga.training.settings import TrainSettings
from tga.training.targets import stored_targets, targets_identity
from tga.vlm.families import family_of
from tga.vlm.freezing import freeze

OBJECTIVES = [TGA((0, 1, 3), form="contrastive"), ReGap(weight=1.0)]


def read(work: Path) -> list[Sample]:
    """Eight samples with neighbours, one of them without, and one without a caption."""
    path, images = write_tiny_llava_json(work)
    samples = load_llava_json(path, images)
    texts = [sample.caption or "" for sample in samples]
    samples = [dataclasses.replace(s, neighbours=(texts[i - 1], texts[i - 2])) for i, s in enumerate(samples)]
    return [
        *samples[:-2],
        dataclasses.replace(samples[-2], neighbours=()),
        dataclasses.replace(samples[-1], caption=None),
    ]


def prepared(work: Path, *, precision: str = "32-true", said: io.StringIO | None = None) -> tuple[Any, Any, Any, list]:
    """Model, collator without and with stored targets, samples."""
    model, processor = tiny_llava()
    samples = read(work)
    collator = Collator(processor, "plain", image_tokens=4, retrieved="loss", max_length=128)
    store = stored_targets(
        model, family_of(model), collator, samples, pooled_layers(OBJECTIVES), work / "targets", precision=precision,
        dtype="float32", device=torch.device("cpu"), console=Console(file=said or io.StringIO(), width=200),
    )  # fmt: skip
    return model, collator, collator.with_stored(store), samples


def losses(model: Any, batch: Any, token_weights: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    freeze(model, family_of(model), ["projector"])
    module = AlignmentModule(
        model, family_of(model), OBJECTIVES, learning_rate=1e-3, total_steps=10, token_weights=token_weights
    )
    found = module.step_losses(batch, 0.0)
    gradient = torch.autograd.grad(
        torch.stack(list(found.values())).sum(), model.model.multi_modal_projector.linear_1.weight
    )[0]
    return {**found, "gradient": gradient}


def test_a_step_with_stored_targets_equals_the_online_step(tmp_path: Path) -> None:
    model, online, stored, samples = prepared(tmp_path)
    with_online, with_stored = losses(model, online(samples)), losses(model, stored(samples))
    assert set(with_online) == {"lm", "tga_pair", "tga_rank", "regap", "gradient"} and with_online["tga_rank"] > 0
    for name, value in with_online.items():
        torch.testing.assert_close(with_stored[name], value, rtol=1e-5, atol=1e-6)


def test_no_decoder_layer_runs_for_stored_targets(tmp_path: Path) -> None:
    model, online, stored, samples = prepared(tmp_path)
    runs: list[int] = []
    model.model.language_model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    losses(model, online(samples))
    assert len(runs) == 2
    losses(model, stored(samples))
    assert len(runs) == 3


def test_the_size_is_said_first_and_a_second_call_computes_nothing(tmp_path: Path) -> None:
    first, second = io.StringIO(), io.StringIO()
    prepared(tmp_path, said=first)
    assert "14 texts x 3 layers x 32 in float32, 0.0 MiB, of which 0.0 MiB are there" in first.getvalue()
    files = sorted((tmp_path / "targets").rglob("*"))
    before = [path.stat().st_mtime_ns for path in files]
    prepared(tmp_path, said=second)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "targets").rglob("*"))] == before


def test_another_language_model_or_precision_is_another_store(tmp_path: Path) -> None:
    model, collator, _, _ = prepared(tmp_path)
    family = family_of(model)
    arguments = (family, collator, (0, 1))
    known = targets_identity(model, *arguments, "32-true", "float32")
    assert targets_identity(model, *arguments, "bf16-mixed", "float32") != known
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[:, 0] += 1
    changed = targets_identity(model, *arguments, "32-true", "float32")
    assert changed.language_model != known.language_model
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.zero_()
    assert targets_identity(model, *arguments, "32-true", "float32") == changed


def test_other_token_weights_are_another_store_and_give_the_online_step(tmp_path: Path) -> None:
    model, collator, _, samples = prepared(tmp_path)
    family, arguments = family_of(model), ("32-true", "float32")
    weights = torch.linspace(0.01, 1.0, len(collator.tokenizer))
    weighted = collator.with_token_weights(weights)
    layers = pooled_layers(OBJECTIVES)
    known = targets_identity(model, family, collator, layers, *arguments)
    other = targets_identity(model, family, weighted, layers, *arguments)
    assert known.pooling == "mean" and other.pooling.startswith("sif ") and other.digest != known.digest
    assert targets_identity(model, family, collator.with_token_weights(weights + 1), layers, *arguments) != other
    store = stored_targets(
        model, family, weighted, samples, layers, tmp_path / "targets", precision="32-true", dtype="float32",
        device=torch.device("cpu"), console=Console(quiet=True),
    )  # fmt: skip
    online, stored = (
        losses(model, weighted(samples), weights),
        losses(model, weighted.with_stored(store)(samples), weights),
    )
    plain = losses(model, collator(samples))
    assert (online["tga_pair"] - plain["tga_pair"]).abs().item() > 1e-4
    for name, value in online.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_has_the_losses_of_the_online_run(precision: str, tmp_path: Path) -> None:
    rows = {}
    for number, kind in enumerate(("online", "stored")):
        model, online, stored, samples = prepared(tmp_path, precision=precision)
        fit(
            model, family_of(model), (online, stored)[number], samples, [TGA((0, 1, 3))],
            TrainSettings(batch_size=4, log_every=1, accelerator="cpu", seed=1, precision=precision), tmp_path / kind,
            train=["projector"], centred=False, calibration=None, hyper_parameters={"base_model": {"vlm": "tiny"}},
            ckpt_path=None, console=Console(quiet=True),
        )  # fmt: skip
        rows[kind] = [row["loss_tga_pair"] for row in read_metrics(tmp_path / kind / "metrics.jsonl")]
    # Texts are padded to another length in the store: in bfloat16 that moves the last of eight bits.
    assert rows["stored"] == pytest.approx(rows["online"], rel=1e-5 if precision == "32-true" else 5e-3)
