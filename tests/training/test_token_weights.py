"""Weighted text tokens: counted as they are pooled, and the same in the centre, the store and the step."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.tiny import SENTENCES, tiny_llava, write_tiny_llava_json
from tga.data.collate import Collator
from tga.data.llava_json import load_llava_json
from tga.errors import UserError
from tga.training.centre import caption_centre
from tga.training.spans import batch_spans, pool_texts
from tga.training.token_weights import caption_token_weights
from tga.vlm.families import family_of
from tga.vlm.hidden_states import multimodal_hidden_states

LAYERS = (0, 2)
QUIET = Console(quiet=True)


def weighted_collator(retrieved: str = "none", max_length: int = 200) -> Collator:
    _, processor = tiny_llava()
    collator = Collator(processor, "plain", image_tokens=4, retrieved=retrieved, max_length=max_length)
    weights = caption_token_weights(collator, SENTENCES, len(processor.tokenizer), 1e-2, console=QUIET, batch_size=2)
    return collator.with_token_weights(weights)


def by_hand(text: str) -> np.ndarray:
    """`[layers, width]`: one text alone, pooled in float64 with counts of its own."""
    model, processor = tiny_llava()
    tokenizer = processor.tokenizer
    counts = collections.Counter(
        t for line in SENTENCES for t in tokenizer(line, add_special_tokens=False)["input_ids"]
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    weights = [1e-2 / (1e-2 + counts[token] / sum(counts.values())) for token in ids]
    given = torch.tensor([[tokenizer.bos_token_id, *ids]])
    with torch.no_grad():
        states = model.model.language_model(input_ids=given, output_hidden_states=True).hidden_states
    rows = [np.average(states[layer][0, 1:].double().numpy(), axis=0, weights=weights) for layer in LAYERS]
    assert len(set(weights)) > 1
    return np.stack(rows)


def test_counts_are_those_of_the_tokens_that_are_pooled() -> None:
    collator = weighted_collator()
    counts = collections.Counter(
        t for line in SENTENCES for t in collator.tokenizer(line, add_special_tokens=False)["input_ids"]
    )
    total = sum(counts.values())
    expected = [1e-2 / (1e-2 + counts[token] / total) for token in range(len(collator.tokenizer))]
    assert collator.token_weights is not None
    np.testing.assert_allclose(collator.token_weights.numpy(), expected, rtol=1e-6)
    assert collator.token_weights[collator.tokenizer.bos_token_id] == 1.0


def test_what_is_cut_is_not_counted() -> None:
    whole, cut = weighted_collator().token_weights, weighted_collator(max_length=3).token_weights
    assert whole is not None and cut is not None and not torch.equal(whole, cut)


def test_no_captions_are_refused() -> None:
    _, processor = tiny_llava()
    collator = Collator(processor, "plain", image_tokens=4, retrieved="none", max_length=200)
    with pytest.raises(UserError, match="no captions to count.*alignment.text_pooling=mean"):
        caption_token_weights(collator, [], 10, 1e-3, console=QUIET)


def test_a_text_alone_is_pooled_with_its_weights() -> None:
    model, _ = tiny_llava()
    states, present = pool_texts(
        model, family_of(model), weighted_collator(), [SENTENCES[0], "", SENTENCES[1]], LAYERS, "cpu"
    )
    assert present.tolist() == [True, False, True] and not states[:, 1].any()
    for row, text in ((0, SENTENCES[0]), (2, SENTENCES[1])):
        np.testing.assert_allclose(states[:, row].numpy(), by_hand(text), rtol=1e-4, atol=1e-6)


def test_the_centre_is_the_mean_of_weighted_states() -> None:
    model, _ = tiny_llava()
    centre = caption_centre(
        model, family_of(model), weighted_collator(), SENTENCES, LAYERS, count=99, seed=0, device=torch.device("cpu"),
        console=QUIET,
    )  # fmt: skip
    expected = np.stack([by_hand(text) for text in SENTENCES]).mean(axis=0)
    np.testing.assert_allclose(centre.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("retrieved", ["loss", "prompt"])
def test_a_batch_weighs_captions_and_retrieved_texts_and_no_image_token(tmp_path: Path, retrieved: str) -> None:
    path, images = write_tiny_llava_json(tmp_path, n=2)
    samples = [dataclasses.replace(s, neighbours=(SENTENCES[2],)) for s in load_llava_json(path, images)]
    model, _ = tiny_llava()
    family, collator = family_of(model), weighted_collator(retrieved)
    batch = collator(samples)
    _, states = multimodal_hidden_states(model, family, LAYERS, **batch.model_inputs())
    spans = batch_spans(model, family, batch, states, LAYERS, token_weights=collator.token_weights)
    plain = batch_spans(model, family, batch, states, LAYERS)
    assert torch.equal(spans.image, plain.image)
    for row, sample in enumerate(samples):
        assert sample.caption is not None
        np.testing.assert_allclose(spans.caption[:, row].numpy(), by_hand(sample.caption), rtol=1e-4, atol=1e-6)
    assert spans.retrieved is not None and plain.retrieved is not None
    assert (spans.retrieved - plain.retrieved).abs().max() > 1e-3
    if retrieved == "prompt":
        assert collator.token_weights is not None
        mask = batch.retrieved_mask[0]
        weights = collator.token_weights[batch.input_ids[0, mask]].double().numpy()
        tokens = [states[layer][0, mask].detach().double().numpy() for layer in LAYERS]
        expected = [np.average(rows, axis=0, weights=weights) for rows in tokens]
        np.testing.assert_allclose(spans.retrieved[:, 0].detach().numpy(), np.stack(expected), rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_allclose(spans.retrieved[:, 0].numpy(), by_hand(SENTENCES[2]), rtol=1e-4, atol=1e-6)
