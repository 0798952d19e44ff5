"""Language-modelling loss that computes logits on label positions only.

In image-caption data most positions are image tokens and padding; the head's `[tokens, vocabulary]` output is the
largest tensor of a step. Selecting the positions first gives the same number and never makes that tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tga.vlm.families import Family, component

IGNORED_LABEL = -100


def lm_loss(model: nn.Module, family: Family, last_hidden: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the next token, over all label positions of the batch.

    Args:
        last_hidden: `[batch, tokens, width]`, the language model's output after its final norm.
        labels: `[batch, tokens]` int64, -100 where ignored, not shifted (as transformers takes them).

    Returns:
        Scalar, at least float32. Exactly zero, connected to the graph, when there is no label.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORED_LABEL
    hidden = last_hidden[:, :-1][chosen]
    if hidden.shape[0] == 0:
        return (last_hidden[:, :1, :1] * 0).sum(dtype=torch.promote_types(last_hidden.dtype, torch.float32))
    logits = component(model, family.lm_head)(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits, targets[chosen])
