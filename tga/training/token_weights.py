"""The weights of the tokens of texts, from the captions that a run trains with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tga.alignment.token_weights import smooth_inverse_frequency
from tga.data.collate import Collator
from tga.errors import UserError


def caption_token_weights(
    collator: Collator, captions: Sequence[str], vocabulary: int, a: float, *, console: Console, batch_size: int = 1024
) -> Tensor:
    """SIF weights from all captions, counted as they are pooled: without BOS, cut at the collator's length.

    Args:
        vocabulary: rows of the input embeddings.
        a: see `tga.alignment.token_weights`.

    Returns:
        `[vocabulary]` float32 on the CPU.

    Raises:
        UserError: there are no captions, or no token in them.
    """
    counts = torch.zeros(vocabulary, dtype=torch.int64)
    starts = range(0, len(captions), batch_size)
    for start in track(starts, "words of the captions", console=console, transient=True):
        ids, _, span = collator.texts(captions[start : start + batch_size])
        counts += torch.bincount(ids[span], minlength=vocabulary)
    if not counts.any():
        raise UserError("The data has no captions to count the words of", remedy="alignment.text_pooling=mean")
    return smooth_inverse_frequency(counts, a)
