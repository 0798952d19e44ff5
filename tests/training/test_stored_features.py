"""Stored vision features: the same batches and losses as with the tower, which stays where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_llava, write_tiny_llava_json
from tests.training.test_run import run
from tga.data.collate import Collator
from tga.data.llava_json import load_llava_json
from tga.data.picture import Picture
from tga.errors import UserError
from tga.training import stored_features
from tga.training.stored_features import StoredFeatures, check_stored_features, tower_left_out
from tga.training.throughput import model_flops
from tga.vlm.families import LLAVA, QWEN2_5_VL, family_of


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_the_forward_is_that_of_the_tower(tmp_path: Path, strategy: str) -> None:
    write_tiny_llava_json(tmp_path)
    model, processor = tiny_llava()
    model.eval()
    if strategy == "full":
        model.config.vision_feature_select_strategy = processor.vision_feature_select_strategy = strategy
    samples = load_llava_json(tmp_path / "train.json", tmp_path / "images")
    tokens = 4 if strategy == "default" else 5
    collator = Collator(processor, "plain", image_tokens=tokens, retrieved="none", max_length=128)
    features = StoredFeatures([*samples, *samples])
    assert len(features) == len({sample.images for sample in samples})
    features.fill(model, family_of(model), collator, precision="32-true", quiet=True)
    online, stored = collator(samples[:3]), collator.with_features(features)(samples[:3])
    assert torch.equal(online.input_ids, stored.input_ids) and torch.equal(online.image_mask, stored.image_mask)
    assert stored.pixel_values is not None and stored.pixel_values.shape == (3, tokens, 24)
    with torch.no_grad():
        expected = model(**online.model_inputs()).logits
        tower = model.model.vision_tower
        with tower_left_out(model, family_of(model)):
            found = model(**stored.model_inputs()).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert model.model.vision_tower is tower


def test_a_training_has_the_same_losses_and_opens_each_picture_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_runs, online = run(tmp_path / "online", epochs=2)
    opened: list[Picture] = []
    real = Collator.pixels

    def counted(self: Collator, pictures: Sequence[Picture], names: Sequence[str]) -> torch.Tensor:
        opened.extend(pictures)
        return real(self, pictures, names)

    monkeypatch.setattr(Collator, "pixels", counted)
    result, stored = run(tmp_path / "stored", epochs=2, stored_features=True, num_workers=2)
    assert len(stored) == len(online) > 4
    assert [row["loss"] for row in stored] == pytest.approx([row["loss"] for row in online], rel=1e-4)
    assert len(opened) == len(set(opened)) > 0
    assert 0 < result.model_flop_utilisation and all_runs.samples == result.samples


def test_the_arithmetic_of_a_step_leaves_the_tower_out() -> None:
    model, _ = tiny_llava()
    family = family_of(model)
    whole, without = (model_flops(model, family, tower_runs=runs).per_image_token for runs in (True, False))
    tower = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    assert whole - without == pytest.approx(6 * tower)  # nothing is frozen here


def test_too_many_features_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_llava_json(tmp_path)
    model, processor = tiny_llava()
    samples = load_llava_json(tmp_path / "train.json", tmp_path / "images")
    collator = Collator(processor, "plain", image_tokens=4, retrieved="none", max_length=128)
    monkeypatch.setattr(stored_features, "MOST_OF_MEMORY", 1e-12)
    for processes, said in ((1, "8 pictures;"), (2, "8 pictures in each of 2 processes;")):
        with pytest.raises(UserError, match=f"{said}.*model.vision_features=online"):
            StoredFeatures(samples).fill(
                model, family_of(model), collator, precision="32-true", processes_here=processes, quiet=True
            )


def test_runs_whose_features_cannot_be_stored() -> None:
    check_stored_features(LLAVA, -2, ["projector"], "ddp")
    for family, layer, train, strategy, said in (
        (LLAVA, -2, ["projector", "vision_tower"], "single", "here it trains"),
        (QWEN2_5_VL, -2, ["projector"], "single", "qwen2_5_vl"),
        (LLAVA, [-2, -5], ["projector"], "single", "features of the layers"),
        (LLAVA, -2, ["projector"], "fsdp2", "training=ddp"),
    ):
        with pytest.raises(UserError, match=said):
            check_stored_features(family, layer, train, strategy)
