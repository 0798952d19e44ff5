"""The text targets of a run: how they are pooled, and whether they are computed at each step or stored before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tga.alignment.objective import Objective, pooled_layers
from tga.alignment.token_weights import MEAN, SIF
from tga.cli.locks import exclusive
from tga.data.collate import Collator
from tga.data.sample import Sample
from tga.evaluation.models import default_device
from tga.training.targets import stored_targets
from tga.training.token_weights import caption_token_weights
from tga.vlm.families import Family, component


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
    """The collator of the run's texts.

    With alignment.text_pooling=sif it has the weights of their tokens; with alignment.targets=stored its batches bring
    the targets, and what is missing is computed.

    Raises:
        UserError: no captions to count the words of, or what `tga.training.targets` raises.
    """
    alignment, training = values["alignment"], values["training"]
    layers = pooled_layers(objectives)
    if not layers:
        return collator
    if alignment.get("text_pooling", MEAN) == SIF:
        captions = [sample.caption for sample in samples if sample.caption]
        vocabulary = len(component(model, family.embed_tokens).weight)  # type: ignore[arg-type]
        weights = caption_token_weights(collator, captions, vocabulary, alignment["sif_a"], console=console)
        collator = collator.with_token_weights(weights)
    if alignment.get("targets") != "stored":
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
