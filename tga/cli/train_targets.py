"""The text targets of a run: computed at each step, or stored before the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tga.alignment.objective import Objective, pooled_layers
from tga.cli.locks import exclusive
from tga.data.collate import Collator
from tga.data.sample import Sample
from tga.evaluation.models import default_device
from tga.training.targets import stored_targets
from tga.vlm.families import Family


def with_targets(
    model: Any,
    family: Family,
    collator: Collator,
    samples: Sequence[Sample],
    objectives: Sequence[Objective],
    values: Mapping[str, Any],
    *,
    console: Console,
) -> Collator:
    """The collator; with alignment.targets=stored its batches bring the targets, and what is missing is computed."""
    alignment, training = values["alignment"], values["training"]
    layers = pooled_layers(objectives)
    if alignment.get("targets") != "stored" or not layers:
        return collator
    directory = Path(values["data"]["targets_dir"]).absolute()
    device = default_device() if training["accelerator"] == "auto" else training["accelerator"]
    with exclusive(directory):
        store = stored_targets(
            model,
            family,
            collator,
            samples,
            layers,
            directory,
            precision=training["precision"],
            dtype=alignment["targets_dtype"],
            device=torch.device(device),
            console=console,
        )
    return collator.with_stored(store)
