"""The centre of the cosines: the mean pooled state of a seeded sample of captions, computed before the training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from tga.alignment.centring import corpus_mean
from tga.alignment.objective import Objective
from tga.data.collate import Collator
from tga.errors import UserError
from tga.training.spans import pool_texts
from tga.vlm.families import Family


def caption_centre(
    model: nn.Module,
    family: Family,
    collator: Collator,
    captions: Sequence[str],
    layers: tuple[int, ...],
    *,
    count: int,
    seed: int,
    device: torch.device,
    console: Console,
    batch_size: int = 64,
) -> Tensor:
    """Mean pooled state of `count` captions drawn without replacement (all of them where there are fewer).

    Returns:
        `[layers, width]` float32 on the CPU.

    Raises:
        UserError: there are no captions.
    """
    if not captions:
        raise UserError("The data has no captions to take the centre from", remedy="alignment.centred=false")
    generator = torch.Generator().manual_seed(seed)
    drawn = sorted((captions[i] for i in torch.randperm(len(captions), generator=generator)[:count].tolist()), key=len)

    def pooled() -> Iterator[Tensor]:
        starts = range(0, len(drawn), batch_size)
        for start in track(starts, "centre of the captions", console=console, transient=True):
            means, present = pool_texts(model, family, collator, drawn[start : start + batch_size], layers, device)
            yield means[:, present]

    return corpus_mean(pooled())


def check_centre(objectives: Sequence[Any]) -> list[bool]:
    """Which of the objectives take a centre.

    Raises:
        UserError: none of them has a field `centre`.
    """
    able = [dataclasses.is_dataclass(o) and any(f.name == "centre" for f in dataclasses.fields(o)) for o in objectives]
    if not any(able):
        given = ", ".join(type(objective).__name__ for objective in objectives) or "no objective"
        allowed, remedy = "an objective with a centre, such as TGA", "alignment.centred=false"
        raise UserError("There is nothing to centre", given=given, allowed=allowed, remedy=remedy)
    return able


def with_centre(objectives: Sequence[Any], centre: Tensor, layers: tuple[int, ...]) -> list[Objective]:
    """The objectives, each that takes a centre with the rows of `centre` `[layers, width]` that belong to its layers.

    Raises:
        UserError: none of them has a field `centre`.
    """
    return [
        dataclasses.replace(objective, centre=centre[[layers.index(layer) for layer in objective.layers]])
        if centred
        else objective
        for objective, centred in zip(objectives, check_centre(objectives), strict=True)
    ]
