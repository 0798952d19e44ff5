"""Attention from the last position to the toxic words, by layer (Figure 2 of TGA).

Only unfused ("eager") attention hands out its weights, so the language model runs eagerly inside a block and gets its
own setting back. A hook on each layer's attention reduces the weights `[batch, heads, queries, keys]` to one number per
prompt at once, so that no more than one layer's weights are in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tga.errors import UserError
from tga.localization.prompts import TextBatch
from tga.vlm.families import Family, component

ATTENTION = "self_attn"  # the attention of a decoder layer in every family of transformers' Llama-like decoders


@contextmanager
def eager_attention(model: nn.Module, family: Family) -> Iterator[None]:
    """The language model with unfused attention; its own setting comes back afterwards, also after an exception."""
    language_model: Any = component(model, family.language_model)
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)


@contextmanager
def last_position_attention(model: nn.Module, family: Family, toxic: Tensor) -> Iterator[list[Tensor]]:
    """Collect, in the one forward pass inside the block, the attention share of the toxic words by layer.

    Args:
        toxic: `[batch, tokens]` bool over the left-padded prompts.

    Yields:
        A list, filled layer by layer when the pass runs: `[batch]` float32, the weights from the last position to the
        toxic words, summed over them and averaged over heads.

    Raises:
        UserError: a decoder layer without `self_attn`, or, in the pass, one that hands out no weights.
    """
    decoder = component(model, family.decoder_layers)
    assert isinstance(decoder, nn.ModuleList)
    shares: list[Tensor] = []
    handles: list[RemovableHandle] = []

    def hook(module: nn.Module, _args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise _no_weights(type(module).__name__)
        last = weights[:, :, -1].float().mean(dim=1)
        shares.append(torch.where(toxic.to(last.device), last, 0.0).sum(dim=1).cpu())

    try:
        for layer in decoder:
            attention = getattr(layer, ATTENTION, None)
            if not isinstance(attention, nn.Module):
                raise _no_weights(type(layer).__name__)
            handles.append(attention.register_forward_hook(hook))
        yield shares
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def attention_shares(
    model: Any, family: Family, batches: Iterable[TextBatch]
) -> Iterator[tuple[TextBatch, Tensor, Tensor]]:
    """Per batch: the batch, the shares `[layers, batch]` float32, and what even attention would give, `[batch]`.

    The even share is the toxic words' part of the prompt's tokens. The model runs eagerly while the generator does.
    """
    with eager_attention(model, family):
        for batch in batches:
            mask = batch.attention_mask
            with last_position_attention(model, family, batch.toxic) as shares:
                component(model, family.language_model)(
                    input_ids=batch.input_ids,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
                    use_cache=False,
                )
            even = batch.toxic.sum(dim=1).float() / mask.sum(dim=1)
            yield batch, torch.stack(shares), even.cpu()


def _no_weights(given: str) -> UserError:
    return UserError(
        "The attention of this model's decoder layers hands out no weights",
        given=given,
        allowed=f"decoder layers with {ATTENTION} and eager attention",
        remedy="leave Figure 2 out: localization.figures=[3,4,5]",
    )
