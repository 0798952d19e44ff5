"""From a batch and the captured hidden states to the spans that objectives compare.

The caption C, and the retrieved text R where it is not part of the prompt, go through the language model alone, in
one call and only up to the deepest layer asked for. Where a batch brings their stored states, no layer is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tga.alignment.objective import Spans, TokenSpans
from tga.data.collate import Batch, Collator
from tga.vlm.families import Family
from tga.vlm.hidden_states import text_hidden_states
from tga.vlm.spans import mean_pool, pack_tokens


def batch_spans(
    model: nn.Module,
    family: Family,
    batch: Batch,
    states: Mapping[int, Tensor],
    layers: tuple[int, ...],
    token_layers: tuple[int, ...] = (),
    token_weights: Tensor | None = None,
) -> Spans:
    """Every span of a batch, pooled at `layers` and token by token at `token_layers`.

    Args:
        states: layer -> `[batch, tokens, width]` of the multimodal forward, at both sets of layers.
        token_weights: `[vocabulary]`, what each token weighs in the pooled state of a text; image tokens all weigh the
            same. Stored states have theirs already.

    Returns:
        Spans of `[layers, batch, width]` float32. `has_pair`: the sample has a picture and a caption;
        `has_retrieved`: a picture and a retrieved text.
    """
    texts = text_targets(model, family, batch, layers, token_layers, token_weights)
    image, has_image = pool_layers(states, batch.image_mask, layers)
    if batch.retrieved_ids is not None:
        retrieved, has_retrieved, retrieved_group = texts[1].pooled, texts[1].present, texts[1].group
    else:
        # With its gradient, not zero where the language model trains; an objective detaches what it keeps fixed.
        weights = weights_of(batch.input_ids, token_weights)
        retrieved, has_retrieved = pool_layers(states, batch.retrieved_mask, layers, weights)
        retrieved_group = text_group(batch.input_ids, batch.retrieved_mask)
    any_retrieved = batch.retrieved_ids is not None or bool(batch.retrieved_mask.any())
    caption = texts[0]
    return Spans(
        layers,
        image,
        caption.pooled,
        retrieved if any_retrieved else None,
        has_pair=has_image & caption.present,
        has_retrieved=has_image & has_retrieved,
        caption_group=caption.group,
        retrieved_group=retrieved_group,
        tokens={
            layer: TokenSpans(*pack_tokens(states[layer], batch.image_mask), *caption.tokens[layer])
            for layer in token_layers
        },
    )


@dataclass(frozen=True)
class TextTargets:
    """Texts of a batch as the language model alone sees them.

    Attributes:
        pooled: `[layers, batch, width]` float32, zeros for an empty text.
        present: `[batch]` bool, False for an empty text.
        group: `[batch]` int64, equal numbers for equal texts.
        tokens: layer -> packed states `[batch, text tokens, width]` and their mask.
    """

    pooled: Tensor
    present: Tensor
    group: Tensor
    tokens: Mapping[int, tuple[Tensor, Tensor]]


@torch.no_grad()
def text_targets(
    model: nn.Module,
    family: Family,
    batch: Batch,
    layers: tuple[int, ...],
    token_layers: tuple[int, ...] = (),
    token_weights: Tensor | None = None,
) -> list[TextTargets]:
    """The captions, and the retrieved texts where the batch has them apart; one call of the language model for both.

    Token states are of the captions only.
    """
    ids, attention, spans = [batch.caption_ids], [batch.caption_attention_mask], [batch.caption_mask]
    if batch.retrieved_ids is not None:
        assert batch.retrieved_attention_mask is not None and batch.retrieved_text_mask is not None
        ids.append(batch.retrieved_ids)
        attention.append(batch.retrieved_attention_mask)
        spans.append(batch.retrieved_text_mask)
    stacked = _stack(spans)
    stored = [kept for kept in (batch.caption_states, batch.retrieved_states) if kept is not None]
    wanted = {*token_layers} if stored else {*layers, *token_layers}
    stacked_ids = _stack(ids)
    states = text_hidden_states(model, family, stacked_ids, _stack(attention), wanted)
    weights = weights_of(stacked_ids, token_weights)
    pooled = torch.cat(stored, dim=1) if stored else pool_layers(states, stacked, layers, weights)[0]
    present = stacked.any(dim=1)
    size = len(batch.ids)
    rows = [slice(at, at + size) for at in range(0, len(stacked), size)]
    captions = {layer: pack_tokens(states[layer][rows[0]], stacked[rows[0]]) for layer in token_layers}
    return [
        TextTargets(pooled[:, row], present[row], text_group(texts, mask), tokens)
        for row, texts, mask, tokens in zip(rows, ids, spans, (captions, {}), strict=False)
    ]


def pool_layers(
    states: Mapping[int, Tensor], mask: Tensor, layers: tuple[int, ...], weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Means over a span by layer, `[layers, batch, width]` float32, and which samples have the span, `[batch]` bool."""
    pooled = [mean_pool(states[layer], mask, weights)[0] for layer in layers]
    present = mask.any(dim=1)
    return torch.stack(pooled) if pooled else torch.zeros(0, len(mask), 0, device=mask.device), present


def pool_texts(
    model: nn.Module, family: Family, collator: Collator, texts: Sequence[str], layers: tuple[int, ...], device: Any
) -> tuple[Tensor, Tensor]:
    """Texts fed to the language model alone, pooled with the collator's token weights.

    Returns:
        `[layers, texts, width]` float32, and which are not empty, `[texts]` bool.
    """
    ids, attention, span = (tensor.to(device) for tensor in collator.texts(texts))
    weights = weights_of(ids, collator.token_weights)
    with torch.no_grad():
        return pool_layers(text_hidden_states(model, family, ids, attention, layers), span, layers, weights)


def weights_of(ids: Tensor, token_weights: Tensor | None) -> Tensor | None:
    """Weights `[batch, tokens]` of the tokens `ids`, out of those `[vocabulary]` of all; None where all are equal."""
    return None if token_weights is None else token_weights.to(ids.device)[ids]


def text_group(ids: Tensor, mask: Tensor) -> Tensor:
    """Equal numbers for rows whose masked tokens are the same: `[batch]` int64 of `ids`, `mask` `[batch, tokens]`."""
    order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)  # wherever the span stands in its row
    spoken = torch.where(mask.gather(1, order), ids.gather(1, order), torch.full_like(ids, -1))
    return torch.unique(spoken, dim=0, return_inverse=True)[1]


def _stack(parts: list[Tensor]) -> Tensor:
    """`[batch, tokens]` parts below each other, padded on the right with zeros (no attention, no span, any token)."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])
