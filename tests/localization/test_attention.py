"""Attention shares against float64 by hand; the model's own attention comes back, and only one layer's is alive."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.localization.reference import forward
from tests.localization.test_knockout import run
from tests.tiny import tiny_llava, tiny_llm
from tga.errors import UserError
from tga.localization.attention import attention_shares, eager_attention, last_position_attention
from tga.localization.prompts import TextBatch, TextPrompt, text_batches
from tga.vlm.families import family_of
from tga.vlm.language_model import LANGUAGE_MODEL


def test_shares_are_those_of_the_computation_by_hand(
    prompts: list[TextPrompt], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_llm(layers=2)
    model.set_attn_implementation("sdpa")
    batches = text_batches(prompts, batch_size=2, tokenizer=tokenizer, device="cpu")
    found = list(attention_shares(model, LANGUAGE_MODEL, batches))
    assert [batch.ids for batch, _, _ in found] == [("a", "b"), ("c",)]
    shares, even = torch.cat([s for _, s, _ in found], dim=1), torch.cat([e for _, _, e in found])
    for row, prompt in enumerate(prompts):
        toxic = np.array(prompt.toxic)
        weights = forward(model, list(prompt.tokens), {})[1]
        expected = [layer[:, -1, toxic].sum(axis=-1).mean() for layer in weights]
        np.testing.assert_allclose(shares[:, row].double().numpy(), expected, atol=1e-5)
        assert even[row].item() == pytest.approx(toxic.mean())


def test_the_models_own_attention_comes_back(batch: TextBatch) -> None:
    model, _ = tiny_llava()
    model.set_attn_implementation("sdpa")
    language_model = model.model.language_model
    family = family_of(model)
    with pytest.raises(ZeroDivisionError):
        with eager_attention(model, family):
            assert language_model.layers[0].self_attn.config._attn_implementation == "eager"
            _ = 1 / 0
    assert language_model.config._attn_implementation == "sdpa"
    assert language_model.layers[0].self_attn.config._attn_implementation == "sdpa"

    plain = tiny_llm(layers=2)
    plain.set_attn_implementation("sdpa")
    before = run(plain, batch)
    list(attention_shares(plain, LANGUAGE_MODEL, [batch]))
    assert torch.equal(run(plain, batch), before)
    assert not any(module._forward_hooks for module in plain.modules())


def test_a_generator_that_is_left_early_restores_the_attention(batch: TextBatch) -> None:
    model = tiny_llm(layers=2)
    model.set_attn_implementation("sdpa")
    running = attention_shares(model, LANGUAGE_MODEL, [batch, batch])
    next(running)
    running.close()
    assert model.config._attn_implementation == "sdpa"


def test_one_layers_weights_are_alive_at_a_time(batch: TextBatch) -> None:
    """When a layer starts, the weights [batch, heads, tokens, tokens] of the one before are gone."""
    model = tiny_llm(layers=3)
    tokens = batch.input_ids.shape[1]
    alive: list[int] = []

    def count(*_: object) -> None:
        shapes = [tuple(found.shape) for found in gc.get_objects() if type(found) is torch.Tensor]
        alive.append(shapes.count((3, 2, tokens, tokens)))

    for layer in model.model.layers:
        layer.register_forward_pre_hook(count)
    with torch.no_grad(), last_position_attention(model, LANGUAGE_MODEL, batch.toxic) as shares:
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    assert alive == [0, 0, 0] and len(shares) == 3


def test_a_model_that_hands_out_no_weights_is_refused(batch: TextBatch) -> None:
    model = tiny_llm(layers=2)
    model.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match=r"hands out no weights.*LlamaAttention.*figures=\[3,4,5\]"):
        with last_position_attention(model, LANGUAGE_MODEL, batch.toxic):
            run(model, batch)
    del model.model.layers[1].self_attn
    with pytest.raises(UserError, match="LlamaDecoderLayer"):
        with last_position_attention(model, LANGUAGE_MODEL, batch.toxic):
            pass
    assert not any(module._forward_hooks for module in model.modules())
