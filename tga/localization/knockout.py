"""Attention knockout: no information flows from some tokens to the later ones, at chosen decoder layers.

For each blocked token k and each later query q outside the blocked tokens, the edge q -> k gets attention exactly zero
and the softmax spreads over what is left (Geva et al., EMNLP 2023; Figure 3 of TGA). Blocked tokens still attend to
themselves and to each other: what is cut is what others read from them. [O] The paper does not say that part.

The mechanism is a forward pre-hook on the decoder layers, which PyTorch calls with the arguments of a layer and whose
return value takes their place. It closes the edges in the layer's additive or boolean attention mask `[batch, 1,
queries, keys]`; where the layer gets none (fused attention in a plain causal pass) it makes that mask. Nothing of a
model's family is touched, and a KV cache may hold the blocked tokens: their columns are counted from the beginning of
the prompt. When the block ends, also by an exception, the hooks are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tga.errors import UserError
from tga.localization.rows import Rows
from tga.vlm.families import Family, component
from tga.vlm.kv_cache import cache_among


@contextmanager
def attention_knockout(model: nn.Module, family: Family, layers: Collection[int], blocked: Tensor) -> Iterator[Rows]:
    """Block what flows from some tokens of the prompts, in every forward pass inside the block.

    Args:
        layers: decoder layers, numbers in 1..L; none changes nothing.
        blocked: `[batch, tokens]` bool over the padded prompts, True on the tokens that others must not read. Tokens
            beyond the prompt (generated ones) are never blocked and never read the blocked ones.

    Yields:
        The rows of the batch: tell its `keep` when some leave.

    Raises:
        UserError: in a forward pass, an attention implementation that takes no mask `[batch, 1, queries, keys]`.
        ValueError: a layer outside of 1..L; in a forward pass, a batch that is not that of `blocked`.
    """
    decoder = component(model, family.decoder_layers)
    assert isinstance(decoder, nn.ModuleList)
    wrong = sorted(layer for layer in layers if not 1 <= layer <= len(decoder))
    if wrong:
        raise ValueError(f"no decoder layers {wrong}; there are 1 to {len(decoder)}")
    rows = Rows(blocked)
    handles: list[RemovableHandle] = []
    try:
        for layer in sorted(set(layers)):
            handles.append(decoder[layer - 1].register_forward_pre_hook(_Block(layer - 1, rows), with_kwargs=True))
        yield rows
    finally:
        for handle in handles:
            handle.remove()


class _Block:
    """The pre-hook of one layer."""

    def __init__(self, index: int, rows: Rows) -> None:
        self._index, self._rows = index, rows

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() != 4:
            raise UserError(
                "Attention knockout needs an attention implementation with a mask of queries and keys",
                given=f"a mask of {mask.dim()} dimensions",
                allowed="sdpa, eager",
                remedy="attn_implementation=sdpa",
            )
        past = _past_length(kwargs, self._index)
        queries = hidden.shape[1]
        # A cache with a sliding window holds the last keys only; a static one is longer than what it holds.
        keys = past + queries if mask is None else mask.shape[-1]
        first_key = max(past + queries - keys, 0)
        query_places = past + torch.arange(queries, device=hidden.device)
        key_places = first_key + torch.arange(keys, device=hidden.device)
        closed = closed_edges(self._rows.of(hidden), query_places, key_places)
        return args, {**kwargs, "attention_mask": _closed(mask, closed, query_places, key_places, hidden.dtype)}


def closed_edges(blocked: Tensor, query_places: Tensor, key_places: Tensor) -> Tensor:
    """Which edges are cut: `[batch, 1, queries, keys]` bool.

    Args:
        blocked: `[batch, prompt tokens]` bool.
        query_places, key_places: positions counted from the beginning of the padded prompts, `[queries]`, `[keys]`.
    """
    key_blocked, query_blocked = (_at(blocked, places) for places in (key_places, query_places))
    later = query_places[:, None] > key_places[None, :]
    return (key_blocked[:, None, :] & ~query_blocked[:, :, None] & later).unsqueeze(1)


def _at(blocked: Tensor, places: Tensor) -> Tensor:
    """`blocked` at some places, False beyond the prompt: `[batch, places]`."""
    inside = places < blocked.shape[1]
    return blocked[:, places.clamp(max=blocked.shape[1] - 1)] & inside


def _closed(
    mask: Tensor | None, closed: Tensor, query_places: Tensor, key_places: Tensor, dtype: torch.dtype
) -> Tensor:
    """The layer's mask with the edges closed; boolean masks stay boolean, True where attended."""
    if mask is not None and mask.dtype == torch.bool:
        return mask & ~closed
    lowest = torch.finfo(dtype).min
    if mask is None:
        future = key_places[None, :] > query_places[:, None]
        return torch.zeros((), dtype=dtype, device=closed.device).masked_fill(closed | future, lowest)
    return mask.masked_fill(closed, torch.finfo(mask.dtype).min)


def _past_length(kwargs: dict[str, Any], index: int) -> int:
    """Tokens that the cache already holds for this layer, or held and dropped."""
    cache = cache_among(kwargs)
    return 0 if cache is None else int(cache.get_seq_length(index))
