"""Token rows of different lengths as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, side: str, device: Any) -> tuple[Tensor, Tensor]:
    """Token rows of different lengths as input_ids and attention_mask [batch, tokens] int64, padded on `side`."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return ids.to(device), mask.to(device)


def padding_id(tokenizer: Any) -> int:
    """The padding token's id, or any other where there is none: what is masked is never attended to."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
