"""Pooled spans: what carries a gradient, and what an objective makes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_llava, write_tiny_llava_json
from tga.alignment.tga import TGA
from tga.data.collate import Collator
from tga.data.llava_json import load_llava_json
from tga.training.spans import batch_spans
from tga.vlm.families import family_of
from tga.vlm.freezing import freeze
from tga.vlm.hidden_states import multimodal_hidden_states

LAYERS = (1, 3)


def rank_gradient(work: Path, *, retrieved: str, retrieved_gradient: bool) -> Tensor:
    """Of the ranking term with respect to the first decoder layer's query weights, where the language model trains."""
    path, images = write_tiny_llava_json(work, n=2)
    samples = [dataclasses.replace(s, neighbours=("Two cats on a chair.",)) for s in load_llava_json(path, images)]
    model, processor = tiny_llava()
    family = family_of(model)
    freeze(model, family, ["projector", "language_model"])
    collator = Collator(processor, "plain", image_tokens=4, retrieved=retrieved, max_length=128)
    batch = collator(samples)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "pixel_values": batch.pixel_values}
    _, states = multimodal_hidden_states(model, family, LAYERS, **inputs)
    spans = batch_spans(model, family, batch, states, LAYERS)
    TGA(LAYERS, retrieved_gradient=retrieved_gradient).losses(spans, 0.0)["tga_rank"].backward()
    gradient = model.model.language_model.layers[0].self_attn.q_proj.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0
    return gradient


def test_the_retrieved_text_of_the_prompt_has_a_gradient_where_an_objective_wants_it(tmp_path: Path) -> None:
    fixed = rank_gradient(tmp_path, retrieved="prompt", retrieved_gradient=False)
    free = rank_gradient(tmp_path, retrieved="prompt", retrieved_gradient=True)
    assert (fixed - free).norm() > 1e-3 * fixed.norm()


@pytest.mark.parametrize("retrieved_gradient", [False, True])
def test_a_text_fed_to_the_language_model_alone_is_a_fixed_target(tmp_path: Path, retrieved_gradient: bool) -> None:
    fixed = rank_gradient(tmp_path, retrieved="loss", retrieved_gradient=False)
    again = rank_gradient(tmp_path, retrieved="loss", retrieved_gradient=retrieved_gradient)
    assert torch.equal(fixed, again)
