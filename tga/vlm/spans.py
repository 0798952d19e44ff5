"""Pooling of hidden states over the tokens of one span, by boolean masks only."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_pool(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean hidden state over the tokens of a span.

    The sum runs in float32 (float64 stays float64). What stands outside the mask has no influence, whatever it is.

    Args:
        hidden: `[batch, tokens, width]`, any floating dtype.
        mask: `[batch, tokens]` bool, True on the tokens of the span.

    Returns:
        pooled `[batch, width]` float32, zeros where the span is empty; present `[batch]` bool, False there.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    count = mask.sum(dim=1)
    inside = torch.where(mask.unsqueeze(-1), hidden, torch.zeros((), dtype=hidden.dtype, device=hidden.device))
    pooled = inside.sum(dim=1, dtype=dtype) / count.clamp(min=1).unsqueeze(-1).to(dtype)
    return pooled, count > 0
