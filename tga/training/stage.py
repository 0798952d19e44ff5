"""Which objectives may run in which stage: some are meant for the projector's stage alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tga.alignment.objective import Objective
from tga.errors import UserError
from tga.vlm.families import Family, component


def refuse_wrong_stage(model: nn.Module, family: Family, objectives: Sequence[Objective]) -> None:
    """Look at what trains: whatever lies within the language model counts, adapters too.

    Raises:
        UserError: an objective of the projector's stage, and the language model trains.
    """
    if not any(parameter.requires_grad for parameter in component(model, family.language_model).parameters()):
        return
    if held := [type(objective).__name__ for objective in objectives if objective.frozen_language_model_only]:
        raise UserError(
            "An objective belongs to the stage in which the language model is frozen, and here it trains",
            given=", ".join(held),
            allowed="model.train=[projector]",
            remedy="another alignment=NAME for this stage, or alignment.regap.force=true",
        )
