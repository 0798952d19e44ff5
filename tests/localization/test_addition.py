"""Added states on two layers: against float64 by hand, in the prompt's pass alone, and gone afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.localization.reference import forward
from tests.localization.test_knockout import row_of, run
from tga.localization.addition import added_states, mean_span_states
from tga.localization.prompts import TextBatch, TextPrompt, text_batches
from tga.vlm.kv_cache import cache_argument
from tga.vlm.language_model import LANGUAGE_MODEL


def vectors() -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {layer: torch.randn(32, generator=generator) for layer in (1, 2)}


@pytest.mark.parametrize("layers", [(1,), (2,), (1, 2)])
def test_logits_are_those_of_the_computation_by_hand(
    layers: tuple[int, ...], llm: LlamaForCausalLM, batch: TextBatch
) -> None:
    chosen = {layer: vectors()[layer] for layer in layers}
    with added_states(llm, LANGUAGE_MODEL, chosen, batch.toxic):
        logits = run(llm, batch)
    for row in range(3):
        ids, toxic = row_of(batch, row)
        added = {layer: toxic[:, None] * vector.double().numpy() for layer, vector in chosen.items()}
        expected = forward(llm, ids, {}, added)[2]
        np.testing.assert_allclose(logits[row, -len(ids) :].double().numpy(), expected, atol=2e-4)


def test_generated_tokens_are_left_alone_and_read_the_change_from_the_cache(
    llm: LlamaForCausalLM, batch: TextBatch
) -> None:
    cache, mask = DynamicCache(config=llm.config), batch.attention_mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    kept = torch.tensor([1, 2])
    with torch.no_grad(), added_states(llm, LANGUAGE_MODEL, vectors(), batch.toxic) as rows:
        given = {cache_argument(): cache, "use_cache": True}
        llm(input_ids=batch.input_ids, attention_mask=mask, position_ids=positions, **given)
        cache.batch_select_indices(kept)
        rows.keep(kept)
        longer = torch.cat([mask, mask.new_ones(3, 1)], 1)[kept]
        last = positions[kept, -1:] + 1
        logits = llm(input_ids=torch.tensor([[40], [50]]), attention_mask=longer, position_ids=last, **given).logits
    for place, (row, token) in enumerate(((1, 40), (2, 50))):
        ids, toxic = row_of(batch, row)
        touched = np.append(toxic, False)[:, None]
        added = {layer: touched * vector.double().numpy() for layer, vector in vectors().items()}
        expected = forward(llm, [*ids, token], {}, added)[2][-1]
        np.testing.assert_allclose(logits[place, -1].double().numpy(), expected, atol=2e-4)


def test_the_untouched_run_is_the_same_to_the_last_bit_before_and_after(
    llm: LlamaForCausalLM, batch: TextBatch
) -> None:
    before = run(llm, batch)
    with added_states(llm, LANGUAGE_MODEL, vectors(), batch.toxic):
        assert not torch.equal(run(llm, batch), before)
    with added_states(llm, LANGUAGE_MODEL, {}, batch.toxic):
        assert torch.equal(run(llm, batch), before)
    with pytest.raises(ZeroDivisionError):
        with added_states(llm, LANGUAGE_MODEL, vectors(), batch.toxic):
            _ = 1 / 0
    assert torch.equal(run(llm, batch), before)
    assert not any(module._forward_hooks for module in llm.modules())
    with pytest.raises(ValueError, match=r"no decoder layers \[0\]"):
        with added_states(llm, LANGUAGE_MODEL, {0: torch.zeros(32)}, batch.toxic):
            pass


class _TupleLayer(nn.Module):
    """A decoder layer of the older kind, which returns a tuple."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return (self.layer(*args, **kwargs), "more")


def test_layers_that_return_a_tuple_keep_what_else_they_return(llm: LlamaForCausalLM) -> None:
    layer = llm.model.layers[0]
    llm.model.layers[0] = _TupleLayer(nn.Identity())
    hidden, places = torch.zeros(1, 2, 32), torch.tensor([[False, True]])
    with added_states(llm, LANGUAGE_MODEL, {1: torch.ones(32)}, places):
        output = llm.model.layers[0](hidden)
    assert output[1] == "more" and output[0][0].sum(-1).tolist() == [0, 32]
    llm.model.layers[0] = layer


def test_mean_states_of_the_toxic_words(
    llm: LlamaForCausalLM, prompts: list[TextPrompt], tokenizer: PreTrainedTokenizerFast
) -> None:
    unmarked = TextPrompt("u", prompts[0].tokens, (False,) * len(prompts[0].tokens))
    batches = text_batches([*prompts, unmarked], batch_size=3, tokenizer=tokenizer, device="cpu")
    found = mean_span_states(llm, LANGUAGE_MODEL, batches, [0, 1, 2])
    for layer in (0, 1, 2):
        means = [forward(llm, list(p.tokens), {})[0][layer][np.array(p.toxic)].mean(axis=0) for p in prompts]
        np.testing.assert_allclose(found[layer].double().numpy(), np.mean(means, axis=0), atol=1e-5)
    batches = text_batches([unmarked], batch_size=1, tokenizer=tokenizer, device="cpu")
    with pytest.raises(ValueError, match="no prompt has toxic words"):
        mean_span_states(llm, LANGUAGE_MODEL, batches, [1])
