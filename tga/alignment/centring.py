"""The mean direction of mean-pooled text states, per layer.

Mean-pooled hidden states of any two texts share one dominant direction, which hides the meaning from a raw cosine.
Its estimate is the mean of the pooled captions of a corpus; subtracting it from both sides centres the cosine.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def corpus_mean(batches: Iterable[Tensor]) -> Tensor:
    """Mean over a corpus of pooled caption states, summed in float64.

    Args:
        batches: tensors `[layers, batch, width]`, empty captions left out.

    Returns:
        `[layers, width]` float32 on the CPU.

    Raises:
        ValueError: there was no caption at all.
    """
    total: Tensor | None = None
    count = 0
    for batch in batches:
        part = batch.detach().to("cpu", torch.float64).sum(dim=1)
        total = part if total is None else total + part
        count += batch.shape[1]
    if total is None or count == 0:
        raise ValueError("the mean of a corpus without captions is undefined")
    return (total / count).to(torch.float32)
