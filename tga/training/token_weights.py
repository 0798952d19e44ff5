"""The weights of the tokens of texts, from the captions that a run trains with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tga.alignment.token_weights import smooth_inverse_frequency
from tga.data.collate import Collator
from tga.data.sample import Sample
from tga.errors import UserError
from tga.vlm.token_spans import encode_texts


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
    counts, longest = torch.zeros(vocabulary, dtype=torch.int64), collator.max_length
    starts = range(0, len(captions), batch_size)
    for start in track(starts, "words of the captions", console=console, transient=True):
        encoded = encode_texts(collator.tokenizer, captions[start : start + batch_size])
        spoken = torch.cat([ids[:longest][mask[:longest]] for ids, mask in encoded])
        counts += torch.bincount(spoken, minlength=vocabulary)
    if not counts.any():
        raise _no_captions()
    return smooth_inverse_frequency(counts, a)


def require_captions(samples: Iterable[Sample]) -> None:
    """UserError where no sample has a caption whose words could be counted."""
    if not any(sample.caption for sample in samples):
        raise _no_captions()


def _no_captions() -> UserError:
    return UserError("The data has no captions to count the words of", remedy="alignment.text_pooling=mean")
