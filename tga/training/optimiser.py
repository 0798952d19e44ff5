"""What the optimiser moves, and how fast: the projector may have a learning rate of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tga.vlm.families import Family, component


def parameter_groups(
    model: nn.Module, family: Family, learning_rate: float, projector_learning_rate: float | None
) -> list[dict[str, Any]]:
    """Groups of what trains, for an optimiser: one, or the projector apart from the rest.

    The groups are named, and a group without parameters is left out, so that a checkpoint's optimiser state fits the
    run that made it and no other.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if projector_learning_rate is None:
        return [{"name": "all", "params": trained, "lr": learning_rate}]
    own = {id(parameter) for parameter in component(model, family.projector).parameters()}
    groups = [
        {"name": "projector", "params": [p for p in trained if id(p) in own], "lr": projector_learning_rate},
        {"name": "others", "params": [p for p in trained if id(p) not in own], "lr": learning_rate},
    ]
    return [group for group in groups if group["params"]]


def adamw(groups: list[dict[str, Any]], *, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the groups. Biases and norms are decayed as weights are: LLaVA's recipes have no decay at all."""
    return torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay, foreach=True)
