"""Attention knockout on two layers: against a float64 computation by hand, with a KV cache, and gone afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from tests.localization.reference import forward
from tests.tiny import tiny_llm
from tga.errors import UserError
from tga.localization.knockout import attention_knockout
from tga.localization.prompts import TextBatch
from tga.vlm.kv_cache import cache_argument
from tga.vlm.language_model import LANGUAGE_MODEL


def run(model: LlamaForCausalLM, batch: TextBatch, **more) -> Tensor:
    """Logits [batch, tokens, vocabulary] of left-padded prompts."""
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": positions}
    with torch.no_grad():
        return model(**given, **more).logits


def row_of(batch: TextBatch, row: int) -> tuple[list[int], np.ndarray]:
    """The tokens of a prompt without padding, and which are toxic."""
    real = batch.attention_mask[row].bool()
    return batch.input_ids[row, real].tolist(), batch.toxic[row, real].numpy()


def cut_of(toxic: np.ndarray) -> np.ndarray:
    """Edges from later tokens that are not toxic to toxic ones."""
    places = np.arange(len(toxic))
    return toxic[None, :] & ~toxic[:, None] & (places[:, None] > places[None, :])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layers", [(1,), (2,), (1, 2)])
def test_logits_are_those_of_the_computation_by_hand(attention: str, layers: tuple[int, ...], batch: TextBatch) -> None:
    model = tiny_llm(layers=2)
    model.set_attn_implementation(attention)
    with attention_knockout(model, LANGUAGE_MODEL, layers, batch.toxic):
        logits = run(model, batch)
    plain = run(model, batch)
    for row in range(3):
        ids, toxic = row_of(batch, row)
        cut = {layer: cut_of(toxic) for layer in layers}
        expected = forward(model, ids, cut)[2]
        found = logits[row, -len(ids) :].double().numpy()
        np.testing.assert_allclose(found, expected, atol=2e-4)
        assert np.abs(plain[row, -1].numpy() - expected[-1]).max() > 1e-2, "the knockout must change something"


def test_a_cut_edge_has_exactly_zero_attention_and_the_rest_sums_to_one(
    llm: LlamaForCausalLM, batch: TextBatch
) -> None:
    seen: list[Tensor] = []
    for layer in llm.model.layers:
        layer.self_attn.register_forward_hook(lambda _m, _a, output: seen.append(output[1]))
    with attention_knockout(llm, LANGUAGE_MODEL, [2], batch.toxic):
        run(llm, batch)
    for row in range(3):
        ids, toxic = row_of(batch, row)
        cut = torch.tensor(cut_of(toxic))
        first, second = (weights[row][:, -len(ids) :, -len(ids) :] for weights in seen)
        assert cut.any() and bool((second[:, cut] == 0).all())
        assert bool((first[:, cut] > 0).all()), "layer 1 was not asked for"
        torch.testing.assert_close(second.sum(-1), torch.ones(second.shape[:2]))
        expected = forward(llm, ids, {2: cut.numpy()})[1]
        np.testing.assert_allclose(second.double().numpy(), expected[1], atol=1e-5)


def test_the_untouched_run_is_the_same_to_the_last_bit_before_and_after(
    llm: LlamaForCausalLM, batch: TextBatch
) -> None:
    before = run(llm, batch)
    with attention_knockout(llm, LANGUAGE_MODEL, [1, 2], batch.toxic):
        assert not torch.equal(run(llm, batch)[:, -1], before[:, -1])
    assert torch.equal(run(llm, batch), before)
    with pytest.raises(ZeroDivisionError):
        with attention_knockout(llm, LANGUAGE_MODEL, [1], batch.toxic):
            _ = 1 / 0
    assert torch.equal(run(llm, batch), before)
    assert not any(module._forward_pre_hooks for module in llm.modules())


def test_no_layers_and_no_tokens_change_nothing(llm: LlamaForCausalLM, batch: TextBatch) -> None:
    before = run(llm, batch)
    with attention_knockout(llm, LANGUAGE_MODEL, [], batch.toxic):
        assert torch.equal(run(llm, batch), before)
    with attention_knockout(llm, LANGUAGE_MODEL, [1, 2], torch.zeros_like(batch.toxic)):
        assert torch.equal(run(llm, batch), before)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generated_tokens_do_not_read_blocked_ones_from_the_cache(attention: str, batch: TextBatch) -> None:
    """Step by step with a cache, rows leaving, against one pass over the whole by hand."""
    model = tiny_llm(layers=2)
    model.set_attn_implementation(attention)
    cache, mask, layers = DynamicCache(config=model.config), batch.attention_mask, (1, 2)
    later = torch.tensor([[40, 41, 42], [50, 51, 52], [60, 61, 62]])
    with torch.no_grad(), attention_knockout(model, LANGUAGE_MODEL, layers, batch.toxic) as rows:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = {cache_argument(): cache, "use_cache": True}
        model(input_ids=batch.input_ids, attention_mask=mask, position_ids=positions, **given)
        last, kept = positions[:, -1:], torch.arange(3)
        for step in range(3):
            if step == 1:
                kept = torch.tensor([0, 2])
                cache.batch_select_indices(kept)
                rows.keep(kept)
                mask, last = mask[kept], last[kept]
            mask, last = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), last + 1
            tokens = later[kept, step : step + 1]
            logits = model(input_ids=tokens, attention_mask=mask, position_ids=last, **given).logits[:, -1]
    for place, row in enumerate(kept.tolist()):
        ids, toxic = row_of(batch, row)
        whole = [*ids, *later[row].tolist()]
        cut = cut_of(np.concatenate([toxic, np.zeros(3, dtype=bool)]))
        expected = forward(model, whole, {1: cut, 2: cut})[2][-1]
        np.testing.assert_allclose(logits[place].double().numpy(), expected, atol=2e-4)


def test_fused_attention_without_a_mask_gets_one(batch: TextBatch) -> None:
    """A single prompt without padding: transformers hands no mask to fused attention then."""
    model = tiny_llm(layers=2)
    model.set_attn_implementation("sdpa")
    ids, toxic = row_of(batch, 0)
    masks = []

    def keep(_module, _args, given) -> None:
        masks.append(given["attention_mask"])

    hook = model.model.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    inputs = torch.tensor([ids])
    with torch.no_grad():
        model(input_ids=inputs)
        hook.remove()
        with attention_knockout(model, LANGUAGE_MODEL, [1, 2], torch.tensor(toxic)[None]):
            logits = model(input_ids=inputs).logits[0]
    assert masks == [None]
    cut = cut_of(toxic)
    np.testing.assert_allclose(logits.double().numpy(), forward(model, ids, {1: cut, 2: cut})[2], atol=2e-4)


def test_what_cannot_work_is_refused(llm: LlamaForCausalLM, batch: TextBatch) -> None:
    with pytest.raises(ValueError, match=r"no decoder layers \[0, 3\]"):
        with attention_knockout(llm, LANGUAGE_MODEL, [0, 1, 3], batch.toxic):
            pass
    with attention_knockout(llm, LANGUAGE_MODEL, [1], batch.toxic[:2]):
        with pytest.raises(ValueError, match="a batch of 3 rows where 2"):
            run(llm, batch)
    layer = llm.model.layers[0]
    with attention_knockout(llm, LANGUAGE_MODEL, [1], batch.toxic):
        with pytest.raises(UserError, match="2 dimensions.*sdpa, eager.*attn_implementation=sdpa"):
            layer(torch.zeros(3, 4, 32), attention_mask=torch.ones(3, 4))
