"""The oracle of the guide loss, pooled by our own code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tga.alignment.objective import Spans
from tga.vlm.spans import mean_pool

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class GuideOracle:
    """Float64 spans pooled from the oracle's hidden states, and its expected values."""

    spans: Spans
    values: dict[str, np.ndarray]


def pool_layers(hidden: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """`[layers, batch, tokens, width]` -> `[layers, batch, width]`, and `[batch]` presence."""
    pooled = [mean_pool(torch.from_numpy(layer), torch.from_numpy(mask)) for layer in hidden]
    return torch.stack([p for p, _ in pooled]), pooled[0][1]


@pytest.fixture
def oracle() -> GuideOracle:
    values = dict(np.load(DATA / "tga_guide_loss.npz"))
    image, has_image = pool_layers(values["hidden"], values["image_mask"])
    retrieved, has_retrieved = pool_layers(values["hidden"], values["retrieved_mask"])
    caption, has_caption = pool_layers(values["caption_hidden"], values["caption_mask"])
    layers = tuple(range(1, image.shape[0] + 1))
    spans = Spans(layers, image, caption, retrieved, has_image & has_caption, has_retrieved)
    return GuideOracle(spans, values)
