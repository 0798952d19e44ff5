"""The start of the projector from the statistics of a run's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tga.data.collate import Collator
from tga.data.sample import Sample
from tga.errors import UserError
from tga.training.settings import Calibration
from tga.vlm.families import Family
from tga.vlm.projector_init import calibrate_projector


def calibrate_on_samples(
    model: Any,
    family: Family,
    collator: Collator,
    samples: Sequence[Sample],
    calibration: Calibration,
    seed: int,
    device: torch.device,
) -> None:
    """Start the projector from the statistics of a seeded draw of training pictures."""
    with_image = [sample for sample in samples if sample.images]
    order = torch.randperm(len(with_image), generator=torch.Generator().manual_seed(seed))
    drawn = [with_image[index] for index in order[: calibration.images].tolist()]
    if not drawn:
        raise UserError("There are no pictures to calibrate the projector on", remedy="model.calibration=null")
    pixels = collator.pictures(drawn).to(device=device, dtype=model.dtype)
    calibrate_projector(model, family, pixels, eps=calibration.eps, output_std_ratio=calibration.output_std_ratio)
