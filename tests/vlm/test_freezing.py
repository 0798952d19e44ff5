"""Freezing: exactly the named parts train, and the table counts every parameter once."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_llava
from tga.errors import UserError
from tga.vlm.families import family_of
from tga.vlm.freezing import freeze, parameter_table


def test_stage_one_trains_the_projector_only() -> None:
    model, _ = tiny_llava()
    model.train()
    freeze(model, family_of(model), ["projector"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    prefix = "model.multi_modal_projector."
    assert trained == {prefix + n for n in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")}
    assert model.model.multi_modal_projector.training
    assert not model.model.language_model.training and not model.model.vision_tower.training


def test_the_table_adds_up() -> None:
    model, _ = tiny_llava()
    freeze(model, family_of(model), ["projector", "language_model"])
    table = {part: (trainable, frozen) for part, trainable, frozen in parameter_table(model, family_of(model))}
    projector = 24 * 32 + 32 + 32 * 32 + 32
    language = sum(p.numel() for p in model.model.language_model.parameters()) + model.lm_head.weight.numel()
    assert table["projector"] == (projector, 0)
    assert table["language_model"] == (language, 0)
    assert table["vision_tower"] == (0, sum(p.numel() for p in model.model.vision_tower.parameters()))
    assert sum(a + b for a, b in table.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("train", [["head"], []])
def test_wrong_parts_are_refused(train: list[str]) -> None:
    model, _ = tiny_llava()
    with pytest.raises(UserError, match="Allowed: vision_tower, projector, language_model"):
        freeze(model, family_of(model), train)
