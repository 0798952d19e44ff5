"""From a batch and the captured hidden states to the pooled spans that objectives compare.

The caption C, and the retrieved text R where it is not part of the prompt, go through the language model alone, in
one call and only up to the deepest layer asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tga.alignment.objective import PooledSpans
from tga.data.collate import Batch
from tga.vlm.families import Family
from tga.vlm.hidden_states import text_hidden_states
from tga.vlm.spans import mean_pool


def pooled_spans(
    model: nn.Module, family: Family, batch: Batch, states: Mapping[int, Tensor], layers: tuple[int, ...]
) -> PooledSpans:
    """Pool every span of a batch at `layers`.

    Args:
        states: layer -> `[batch, tokens, width]` of the multimodal forward.

    Returns:
        Spans of `[layers, batch, width]` float32. `has_pair`: the sample has a picture and a caption;
        `has_retrieved`: and a retrieved text besides.
    """
    image, has_image = pool_layers(states, batch.image_mask, layers)
    texts = text_targets(model, family, batch, layers)
    caption, has_caption = texts[0]
    if batch.retrieved_ids is not None:
        retrieved, has_retrieved = texts[1]
    else:
        # With its gradient, which is not zero where the language model trains; an objective detaches what it keeps fixed.
        retrieved, has_retrieved = pool_layers(states, batch.retrieved_mask, layers)
    has_pair = has_image & has_caption
    any_retrieved = batch.retrieved_ids is not None or bool(batch.retrieved_mask.any())
    return PooledSpans(layers, image, caption, retrieved if any_retrieved else None, has_pair, has_pair & has_retrieved)


@torch.no_grad()
def text_targets(
    model: nn.Module, family: Family, batch: Batch, layers: tuple[int, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Pooled captions, and retrieved texts where the batch has them apart; one call of the language model for both."""
    ids, attention, spans = [batch.caption_ids], [batch.caption_attention_mask], [batch.caption_mask]
    if batch.retrieved_ids is not None:
        assert batch.retrieved_attention_mask is not None and batch.retrieved_text_mask is not None
        ids.append(batch.retrieved_ids)
        attention.append(batch.retrieved_attention_mask)
        spans.append(batch.retrieved_text_mask)
    states = text_hidden_states(model, family, _stack(ids), _stack(attention), layers)
    pooled, present = pool_layers(states, _stack(spans), layers)
    size = len(batch.ids)
    return [(pooled[:, at : at + size], present[at : at + size]) for at in range(0, pooled.shape[1], size)]


def pool_layers(states: Mapping[int, Tensor], mask: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Means over a span by layer, `[layers, batch, width]` float32, and which samples have the span, `[batch]` bool."""
    pooled = [mean_pool(states[layer], mask) for layer in layers]
    return torch.stack([mean for mean, _ in pooled]), pooled[0][1]


def _stack(parts: list[Tensor]) -> Tensor:
    """`[batch, tokens]` parts below each other, padded on the right with zeros (no attention, no span, any token)."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])
