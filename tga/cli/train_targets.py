"""The text targets of a run: how they are pooled, and whether they are computed at each step or stored before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tga.alignment.objective import Objective, pooled_layers
from tga.alignment.token_weights import MEAN, SIF, SIF_A
from tga.cli.locks import exclusive_within
from tga.data.collate import Collator
from tga.data.sample import Sample
from tga.evaluation.models import default_device
from tga.training.targets import stored_targets
from tga.training.token_weights import caption_token_weights
from tga.vlm.families import Family, component


def with_text_pooling(
    model: Any,
    family: Family,
    collator: Collator,
    samples: Sequence[Sample],
    objectives: Sequence[Objective],
    alignment: Mapping[str, Any],
    *,
    console: Console,
) -> Collator:
    """The collator; with alignment.text_pooling=sif it has the weights of the tokens of texts.

    Every process counts for itself, at the same time as the others.

    Raises:
        UserError: no captions to count the words of.
    """
    if alignment.get("text_pooling", MEAN) != SIF or not pooled_layers(objectives):
        return collator
    captions = [sample.caption for sample in samples if sample.caption]
    vocabulary = len(component(model, family.embed_tokens).weight)  # type: ignore[arg-type]
    a = alignment.get("sif_a", SIF_A)
    return collator.with_token_weights(caption_token_weights(collator, captions, vocabulary, a, console=console))


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
    with exclusive_within(directory):
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
