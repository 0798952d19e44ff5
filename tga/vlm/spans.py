"""Pooling of hidden states over the tokens of one span, by boolean masks only."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_pool(hidden: Tensor, mask: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean hidden state over the tokens of a span, `sum_t w_t h_t / sum_t w_t` with weights.

    The sum runs in float32 (float64 stays float64). What stands outside the mask has no influence, whatever it is.

    Args:
        hidden: `[batch, tokens, width]`, any floating dtype.
        mask: `[batch, tokens]` bool, True on the tokens of the span.
        weights: `[batch, tokens]`, above 0 on the tokens of the span; None: all weigh the same.

    Returns:
        pooled `[batch, width]` float32, zeros where the span is empty; present `[batch]` bool, False there.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    count = mask.sum(dim=1)
    if weights is None:
        inside = torch.where(mask.unsqueeze(-1), hidden, torch.zeros((), dtype=hidden.dtype, device=hidden.device))
        return inside.sum(dim=1, dtype=dtype) / count.clamp(min=1).unsqueeze(-1).to(dtype), count > 0
    # Of the span alone: a text within a prompt is short beside it.
    states, shares = pack_tokens(hidden, mask)[0], pack_tokens(weights.unsqueeze(-1), mask)[0].to(dtype)
    total = torch.where(count > 0, shares.sum(dim=(1, 2)), torch.ones((), dtype=dtype, device=hidden.device))
    return (states * shares).sum(dim=1) / total.unsqueeze(-1), count > 0


def pack_tokens(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The states of a span's tokens alone, moved to the left of their rows in their order.

    What stands outside the mask has no influence, whatever it is.

    Args:
        hidden: `[batch, tokens, width]`, any floating dtype.
        mask: `[batch, tokens]` bool, True on the tokens of the span.

    Returns:
        packed `[batch, longest span, width]` float32 (float64 stays float64), zeros behind the last token of a row;
        mask `[batch, longest span]` bool. The longest span counts as one token at least.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    longest = max(1, int(mask.sum(dim=1).max()))
    order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    kept = mask.gather(1, order)
    chosen = hidden.gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])).to(dtype)
    return torch.where(kept.unsqueeze(-1), chosen, torch.zeros((), dtype=dtype, device=hidden.device)), kept
