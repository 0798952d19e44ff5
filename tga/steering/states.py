"""Hidden states of a prompt's last position at the decoder layers, for prompts that may share their beginning.

`PrefixStates` asks many prompts that begin alike: the same system prompt, the same meaningless picture. In a causal
model what stands at a position depends on what stands before it only, so the beginning runs once, its KV cache is kept,
and each prompt costs the tokens of its own end. Results differ from whole prompts in the last digits only, as sums run
in another order. A forward pass ends at the deepest layer that is asked for: later layers and the head do not run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from tga.vlm.families import Family, component, image_token_id
from tga.vlm.kv_cache import cache_argument
from tga.vlm.padding import pad_rows

Inputs = Callable[[Sequence[Sequence[int]]], Mapping[str, Any]]


class _DeepestLayerReached(Exception):
    """Ends a forward pass from inside a hook, once nothing deeper is wanted."""


@contextmanager
def last_position_states(model: nn.Module, family: Family, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the state of the last position at decoder layers 1..L in the one forward pass inside the block.

    Yields layer -> `[batch, width]` in the model's dtype, filled as the layers run; the pass ends at the deepest of
    them. Prompts are padded on the left.
    """
    decoder = component(model, family.decoder_layers)
    assert isinstance(decoder, nn.ModuleList)
    states: dict[int, Tensor] = {}
    handles: list[RemovableHandle] = []
    deepest = max(layers)

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> None:
            states[layer] = (output if isinstance(output, torch.Tensor) else output[0])[:, -1].clone()
            if layer == deepest:
                raise _DeepestLayerReached

        return hook

    try:
        handles += [decoder[layer - 1].register_forward_hook(keep(layer)) for layer in layers]
        yield states
    except _DeepestLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def whole_states(model: Any, family: Family, layers: Sequence[int], inputs: Mapping[str, Any]) -> Tensor:
    """States of whole prompts `[layers, batch, width]`, float32 at least; `inputs` are those of forward."""
    with last_position_states(model, family, layers) as states:
        model(**_counted(family, inputs), use_cache=False)
    return _stacked(states, layers)


class PrefixStates:
    """States of prompts that share their beginning, and in it one picture or none."""

    def __init__(self, model: Any, family: Family, layers: Sequence[int], inputs: Inputs | None = None) -> None:
        """inputs: token rows that hold the one picture -> what the model's forward takes of them, padded on the left.

        None for prompts of words only.
        """
        self._model, self._family, self._layers, self._inputs = model, family, tuple(layers), inputs
        self._tokens: list[int] = []  # whose keys and values the cache holds
        self._cache: list[tuple[Tensor, Tensor]] = []

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """States of the last position of each prompt, `[layers, batch, width]`, float32 at least.

        rows: token ids, image tokens expanded. Prompts run as a whole where they do not share all of the picture's
        tokens, and where the model cannot go on from a kept beginning: rotary positions in three dimensions, a Q-Former
        that reads the request, layers that keep something else than all keys and values.
        """
        shared = self._shared(rows)
        if self._inputs is not None and not shared:
            return whole_states(self._model, self._family, self._layers, self._inputs(rows))
        ids, mask = pad_rows([row[shared:] for row in rows], 0, "left", self._model.device)
        mask = torch.cat([mask.new_ones(len(rows), shared), mask], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, shared:]
        cache = DynamicCache(config=self._model.config.get_text_config())
        for layer, kept in enumerate(self._cache if shared else ()):
            cache.update(*(state[:, :, :shared].expand(len(rows), -1, -1, -1) for state in kept), layer)
        given = {"attention_mask": mask, "position_ids": positions, cache_argument(): cache, "use_cache": True}
        with last_position_states(self._model, self._family, self._layers) as states:
            component(self._model, self._family.language_model)(input_ids=ids, **given)
        return _stacked(states, self._layers)

    def _shared(self, rows: Sequence[Sequence[int]]) -> int:
        """How many first tokens need not run again; after this the cache holds them."""
        needed = 1
        if self._inputs is not None:
            if self._family.rope_deltas is not None or self._family.question_tokenizer is not None:
                return 0
            places = [at for at, token in enumerate(rows[0]) if token == image_token_id(self._model, self._family)]
            needed = places[-1] + 1
        common = min(_common(rows), min(len(row) for row in rows) - 1)  # something must be left to run
        if common < needed:
            return 0
        start = list(rows[0][:common])
        known = _common([self._tokens, start])
        if known < needed:
            self._run(start)
            known = common
        return known if self._cache else 0

    def _run(self, tokens: list[int]) -> None:
        """Run a beginning and keep its keys and values; none where a layer does not keep all of them."""
        cache = DynamicCache(config=self._model.config.get_text_config())
        with last_position_states(self._model, self._family, self._layers):
            if self._inputs is not None:
                inputs = _counted(self._family, self._inputs([tokens]))
                self._model(**inputs, **{cache_argument(): cache}, use_cache=True)
            else:
                ids = torch.tensor([tokens], device=self._model.device)
                given = {"attention_mask": torch.ones_like(ids), cache_argument(): cache, "use_cache": True}
                component(self._model, self._family.language_model)(input_ids=ids, **given)
        self._tokens, self._cache = tokens, []
        for layer in cache.layers[: max(self._layers)]:
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if keys is None or values is None or keys.shape[-2] < len(tokens):
                self._cache = []
                return
            self._cache.append((keys, values))


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows share."""
    shared = 0
    for tokens in zip(*rows, strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return shared


def _counted(family: Family, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with positions that leave padding out, unless the model counts them itself."""
    if family.rope_deltas is not None:
        return dict(inputs)
    return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}


def _stacked(states: Mapping[int, Tensor], layers: Sequence[int]) -> Tensor:
    wide = [states[layer].to(torch.promote_types(states[layer].dtype, torch.float32)) for layer in layers]
    return torch.stack([state.to(wide[0].device) for state in wide])
