"""Algorithm 1 against the archive, and on a tiny model against float64 by hand; counts and quantiles against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.localization.reference import forward, norm
from tga.errors import UserError
from tga.localization.activation import VARIANTS, LayerCounts, Trace, gains_fire, traces
from tga.localization.prompts import TextBatch, TextPrompt, text_batches
from tga.vlm.hidden_states import text_hidden_states
from tga.vlm.language_model import LANGUAGE_MODEL

ORACLE = Path(__file__).resolve().parent.parent / "data" / "activation_layer.npz"


@pytest.mark.parametrize(("variant", "key"), [("log_ratio", "paper"), ("released", "released")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_activation_layers_of_the_archive(variant: str, key: str, dtype: torch.dtype) -> None:
    archive = np.load(ORACLE)
    logits, sorry = torch.tensor(archive["logits"], dtype=dtype), torch.tensor(archive["sorry_ids"])
    prompts, layers = logits.shape[0], logits.shape[1] - 1
    fires = torch.stack(
        [gains_fire(logits[:, at - 1], logits[:, at], sorry, variant) for at in range(1, layers + 1)], 1
    )
    fires[:, : VARIANTS[variant][1] - 1] = False
    for row in range(prompts):
        found = Trace("", tuple((fires[row].nonzero().flatten() + 1).tolist()), False).activation()
        assert (-1 if found is None else found) == archive[key][row]


@pytest.mark.parametrize("variant", ["log_ratio", "released"])
def test_traces_are_those_of_the_computation_by_hand(
    variant: str, llm: LlamaForCausalLM, prompts: list[TextPrompt], tokenizer: PreTrainedTokenizerFast
) -> None:
    state = {name: value.double().numpy() for name, value in llm.state_dict().items()}
    wanted: dict[str, list[int]] = {}
    tops: list[list[int]] = []
    for prompt in prompts:
        states = forward(llm, list(prompt.tokens), {})[0]
        normed = [norm(state_of[-1], state["model.norm.weight"], llm.config.rms_norm_eps) for state_of in states]
        logits = [vector @ state["lm_head.weight"].T for vector in normed]
        p = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logits]
        gains = [np.log(p[at] / p[at - 1]) if variant == "log_ratio" else p[at] - p[at - 1] for at in (1, 2)]
        tops.append([int(gain.argmax()) for gain in gains])
        wanted[prompt.id] = [int(token) for gain in gains for token in np.argsort(gain)[-VARIANTS[variant][0] :]]
    sorry = [tops[0][1], tops[1][0]]  # one that fires at layer 2 of the first prompt, one at layer 1 of the second
    batches = text_batches(prompts, batch_size=2, tokenizer=tokenizer, device="cpu")
    found = {trace.id: trace for trace in traces(llm, LANGUAGE_MODEL, batches, sorry, variant=variant)}
    count = VARIANTS[variant][0]
    for name, tokens in wanted.items():
        by_layer = {1: tokens[:count], 2: tokens[count:]}
        expected = [at for at in range(VARIANTS[variant][1], 3) if set(by_layer[at]) & set(sorry)]
        assert list(found[name].layers) == expected
    assert found["a"].layers[-1:] == (2,)


def test_half_precision_ends_where_the_states_do(llm: LlamaForCausalLM, batch: TextBatch) -> None:
    """The head of a bfloat16 model is read in float32: its logits are not rounded before they are compared."""
    llm = llm.to(torch.bfloat16)
    states = text_hidden_states(llm, LANGUAGE_MODEL, batch.input_ids, batch.attention_mask, [1, 2])
    weight, scale = llm.lm_head.weight.detach().double(), llm.model.norm.weight.detach().double()
    logits = []
    for layer in (1, 2):
        ends = states[layer][:, -1].detach().double()
        normed = ends / (ends.square().mean(-1, keepdim=True) + llm.config.rms_norm_eps).sqrt() * scale
        logits.append(normed @ weight.T)
    gains = logits[1].log_softmax(-1) - logits[0].log_softmax(-1)
    for row, token in enumerate(gains.argmax(-1).tolist()):
        found = list(traces(llm, LANGUAGE_MODEL, [batch], [token]))
        assert 2 in found[row].layers
    assert llm.lm_head.weight.dtype == llm.model.norm.weight.dtype == torch.bfloat16


def test_opening_tells_the_most_likely_first_token(llm: LlamaForCausalLM, batch: TextBatch) -> None:
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        given = {"attention_mask": batch.attention_mask, "position_ids": positions}
        first = llm(input_ids=batch.input_ids, **given).logits[:, -1].argmax(-1).tolist()
    assert [t.opens for t in traces(llm, LANGUAGE_MODEL, [batch], [first[1]])] == [t == first[1] for t in first]


def test_an_unknown_variant_is_refused(llm: LlamaForCausalLM, batch: TextBatch) -> None:
    with pytest.raises(UserError, match="top3.*log_ratio, released"):
        list(traces(llm, LANGUAGE_MODEL, [batch], [5], variant="top3"))


def test_ignored_layers_are_passed_over_and_none_stays_none() -> None:
    trace = Trace("a", (2, 4, 5), True)
    assert trace.activation() == 2 and trace.activation([2, 3]) == 4 and trace.activation([2, 4, 5]) is None
    assert Trace("b", (), False).activation() is None


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_equal_numpys(seed: int) -> None:
    layers = np.random.default_rng(seed).integers(1, 8, size=seed * 7 + 1)
    counts = LayerCounts(8)
    for layer in layers.tolist():
        counts.add(Trace("", (layer, 8), False))
    counts.add(Trace("", (), True))
    for q in (0, 0.25, 0.5, 0.75, 1):
        assert counts.quantile(q) == pytest.approx(np.quantile(layers, q))
    assert (counts.total, counts.without, counts.opening) == (len(layers) + 1, 1, 1)
    assert counts.fired_share(8) == len(layers) / (len(layers) + 1)


def test_prompts_without_activation_are_never_averaged() -> None:
    counts = LayerCounts(4)
    counts.add(Trace("a", (), False))
    assert counts.quantile(0.5) is None and counts.without == counts.total == 1
    counts.add(Trace("b", (3,), False))
    assert counts.quantile(0) == counts.quantile(1) == 3


def test_frequent_layers_of_benign_prompts() -> None:
    counts = LayerCounts(4)
    for layers in ((1, 2), (1,), (1, 4), ()):
        counts.add(Trace("", layers, False))
    assert counts.frequent(0.5) == (1,) and counts.frequent(0.1) == (1, 2, 4) and counts.frequent(0.75) == ()
    contrasted = LayerCounts(4)
    contrasted.add(Trace("", (1, 3), False), ignored=counts.frequent(0.5))
    assert contrasted.activated == {3: 1} and contrasted.fired == {1: 1, 3: 1}
