"""Adding a vector to the hidden states of some tokens at the output of chosen decoder layers (Figure 5 of TGA).

The paper adds the mean text hidden state to the image tokens. `mean_span_states` makes that mean: at each layer, over
prompts, of the mean state of a prompt's toxic words; every prompt counts alike. [O] The paper's caption says neither
which texts nor which tokens, nor whether each layer of a window adds its own: here each layer l of the window adds
`scale` times its own mean to its output, so what a window adds sums up along the residual stream.

PyTorch calls a forward hook with what a layer returns and takes what the hook returns in its place. The tokens stand in
the prompt, so only the pass that holds the whole prompt is changed; later tokens read the change from the KV cache.
When the block ends, also by an exception, the hooks are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tga.localization.prompts import TextBatch
from tga.localization.rows import Rows
from tga.vlm.families import Family, component
from tga.vlm.hidden_states import text_hidden_states
from tga.vlm.spans import mean_pool


@contextmanager
def added_states(model: nn.Module, family: Family, vectors: Mapping[int, Tensor], places: Tensor) -> Iterator[Rows]:
    """Add `vectors[l]` to the output of decoder layer l at some tokens of the prompts, while the block runs.

    Args:
        vectors: layer in 1..L -> `[width]`; none changes nothing.
        places: `[batch, tokens]` bool over the padded prompts, True on the tokens that are changed.

    Yields:
        The rows of the batch: tell its `keep` when some leave.

    Raises:
        ValueError: a layer outside of 1..L; in a forward pass over prompts, a batch that is not that of `places`.
    """
    decoder = component(model, family.decoder_layers)
    assert isinstance(decoder, nn.ModuleList)
    wrong = sorted(layer for layer in vectors if not 1 <= layer <= len(decoder))
    if wrong:
        raise ValueError(f"no decoder layers {wrong}; there are 1 to {len(decoder)}")
    rows = Rows(places)
    handles: list[RemovableHandle] = []
    try:
        for layer, vector in sorted(vectors.items()):
            handles.append(decoder[layer - 1].register_forward_hook(_adder(vector, rows, places.shape[1])))
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _adder(vector: Tensor, rows: Rows, tokens: int) -> Any:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> Any:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        if hidden.shape[1] != tokens:  # a later pass, over generated tokens
            return None
        changed = torch.where(rows.of(hidden).unsqueeze(-1), hidden + vector.to(hidden), hidden)
        return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

    return hook


@torch.inference_mode()
def mean_span_states(
    model: Any, family: Family, batches: Iterable[TextBatch], layers: Collection[int]
) -> dict[int, Tensor]:
    """The mean state of the toxic words at each layer, `[width]` float32: the mean over a prompt's, then over prompts.

    Prompts without toxic words do not count. The sum runs in float64 and does not grow with the prompts.

    Raises:
        ValueError: no prompt has toxic words.
    """
    sums: dict[int, Tensor] = {}
    count = 0
    for batch in batches:
        states = text_hidden_states(model, family, batch.input_ids, batch.attention_mask, layers)
        for layer, state in states.items():
            pooled, present = mean_pool(state, batch.toxic)
            added = pooled[present].double().sum(dim=0).cpu()
            sums[layer] = sums[layer] + added if layer in sums else added
        count += int(batch.toxic.any(dim=1).sum())
    if not count:
        raise ValueError("no prompt has toxic words")
    return {layer: (total / count).float() for layer, total in sums.items()}
