"""Learning rates by part, and gradients that are no numbers."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import tiny_llava
from tests.training.test_module import build
from tga.errors import UserError
from tga.training.guard import FiniteGradients
from tga.training.optimiser import adamw, parameter_groups
from tga.vlm.families import family_of
from tga.vlm.freezing import freeze


def test_the_projector_may_have_a_rate_of_its_own() -> None:
    model, _ = tiny_llava()
    family = family_of(model)
    freeze(model, family, ["projector", "language_model"])
    (everything,) = parameter_groups(model, family, 2e-6, None)
    projector, others = parameter_groups(model, family, 2e-6, 1e-5)
    assert (everything["lr"], projector["lr"], others["lr"]) == (2e-6, 1e-5, 2e-6)
    assert [id(p) for p in projector["params"]] == [id(p) for p in model.model.multi_modal_projector.parameters()]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(id(p) for group in (projector, others) for p in group["params"]) == sorted(trained)
    assert [id(p) for p in everything["params"]] == trained
    freeze(model, family, ["projector"])
    assert [group["name"] for group in parameter_groups(model, family, 2e-6, 1e-5)] == ["projector"]


def test_a_first_step_moves_each_part_by_its_rate(tmp_path: Path) -> None:
    """AdamW's first step is the learning rate times the gradient's sign, whatever its size."""
    module, batch = build(tmp_path, learning_rate=1e-3, projector_learning_rate=5e-3)
    freeze(module.model, module.family, ["projector", "language_model"])
    head = module.model.get_parameter("lm_head.weight")
    bias = module.model.get_parameter("model.multi_modal_projector.linear_2.bias")
    before = head.detach().clone(), bias.detach().clone()
    configured = module.configure_optimizers()
    sum(module.step_losses(batch, 0.0).values()).backward()  # type: ignore[union-attr]
    configured["optimizer"].step()
    assert float((head.detach() - before[0]).abs().max()) == pytest.approx(1e-3, rel=1e-2)
    assert float((bias.detach() - before[1]).abs().max()) == pytest.approx(5e-3, rel=1e-2)
    assert configured["optimizer"].state_dict()["param_groups"][0]["name"] == "projector"


class Trainer:
    global_step = 3


def test_gradients_that_deepspeed_has_taken_away_are_not_missed() -> None:
    model, _ = tiny_llava()
    guard, module = FiniteGradients(), SimpleNamespace(model=model)
    guard.on_train_start(SimpleNamespace(), module)  # type: ignore[arg-type]
    guard.on_before_optimizer_step(SimpleNamespace(global_step=0), module, None)  # type: ignore[arg-type]


def test_a_gradient_that_is_not_finite_names_the_samples_of_the_step(tmp_path: Path) -> None:
    module, batch = build(tmp_path)
    optimizer = adamw(parameter_groups(module.model, module.family, 1e-3, None), betas=(0.9, 0.99), weight_decay=0)
    sum(module.step_losses(batch, 0.0).values()).backward()  # type: ignore[union-attr]
    guard, trainer = FiniteGradients(), Trainer()
    guard.on_train_start(trainer, module)  # type: ignore[arg-type]
    guard.on_train_batch_start(trainer, module, batch, 0)  # type: ignore[arg-type]
    guard.on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
    guard.on_train_batch_start(trainer, module, batch, 1)  # type: ignore[arg-type]
    bias = module.model.get_parameter("model.multi_modal_projector.linear_1.bias")
    assert bias.grad is not None
    bias.grad[3] = math.inf
    said = r"not finite at step 3 \(model.multi_modal_projector.linear_1.bias\).*\['t', '0', '1'\]"
    with pytest.raises(UserError, match=said):
        guard.on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
    assert torch.isfinite(bias).all()
