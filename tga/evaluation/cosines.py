"""How near a picture's image tokens are to its caption, by layer, for matched and for mismatched pairs.

Mean-pooled states of any picture and any text share one direction, so a raw cosine is high for wrong pairs as well;
what tells is the distance between matched and mismatched pairs, and the centred cosine, from which the mean of the
captions is taken away on both sides. Layer 0 is the projector's output itself, `l` the output of decoder layer `l`,
un-normed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tga.alignment.layers import measured_layers
from tga.evaluation.prompts import prompt_batch, prompt_rows
from tga.evaluation.questions import Question
from tga.vlm.families import Family, image_token_id, num_layers
from tga.vlm.hidden_states import multimodal_hidden_states, text_hidden_states
from tga.vlm.modes import evaluating
from tga.vlm.padding import pad_rows, padding_id
from tga.vlm.spans import mean_pool
from tga.vlm.token_spans import encode_text


def pair_cosines(
    model: Any,
    processor: Any,
    family: Family,
    pairs: Sequence[Question],
    *,
    layers: str | Sequence[int],
    chat_template: str,
    plain_template: str,
    batch_size: int,
    seed: int,
) -> dict[str, float]:
    """Mean cosines over the pairs: `[centred_]{matched,mismatched}_layer_<l>` -> value in [-1, 1].

    pairs: questions with a picture and a caption, at least two. layers: "all" for 0..L, or numbers in 0..L.
    """
    last = num_layers(model, family)
    chosen = measured_layers(layers, last)
    partner = derangement([pair.caption or "" for pair in pairs], seed)
    images, captions = [], []
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(pairs), batch_size):
            chunk = pairs[start : start + batch_size]
            rows = prompt_rows(
                model, processor, family, chunk, chat_template=chat_template, plain_template=plain_template
            )
            images.append(_pooled_images(model, processor, family, chunk, rows, chosen))
            captions.append(_pooled_captions(model, processor, family, chunk, chosen))
    image, caption = torch.cat(images, dim=1), torch.cat(captions, dim=1)
    centre = caption.mean(dim=1, keepdim=True)
    values = {}
    for prefix, shift in (("", torch.zeros_like(centre)), ("centred_", centre)):
        ours, theirs = image - shift, caption - shift
        for kind, text in (("matched", theirs), ("mismatched", theirs[:, partner])):
            cosine = torch.nn.functional.cosine_similarity(ours, text, dim=-1).mean(dim=1)
            for layer, value in zip(chosen, cosine.tolist(), strict=True):
                values[f"{prefix}{kind}_layer_{layer}"] = value
    return values


def derangement(captions: Sequence[str], seed: int) -> list[int]:
    """For each pair the number of another one to be mismatched with, a permutation without fixed points.

    A seeded cycle through all pairs, turned so far that as few pairs as possible meet their own caption's text.
    Raises ValueError for fewer than two pairs.
    """
    count = len(captions)
    if count < 2:
        raise ValueError("mismatched pairs need at least two pairs")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    best: list[int] = []
    fewest = count + 1
    for turn in range(1, count):
        partner = [0] * count
        for place, pair in enumerate(order):
            partner[pair] = order[(place + turn) % count]
        same = sum(captions[pair] == captions[other] for pair, other in enumerate(partner))
        if same < fewest:
            best, fewest = partner, same
        if fewest == 0:
            break
    return best


def _pooled_images(
    model: Any,
    processor: Any,
    family: Family,
    pairs: Sequence[Question],
    rows: Sequence[Sequence[int]],
    layers: tuple[int, ...],
) -> Tensor:
    """Image spans [layers, batch, width] float32 of the pairs' own prompts."""
    pictures = [pair.image for pair in pairs if pair.image is not None]
    batch = prompt_batch(model, processor, family, rows, pictures, padding_side="right")
    _, states = multimodal_hidden_states(model, family, layers, **batch.model_inputs())
    return _pool(states, layers, batch.input_ids == image_token_id(model, family))


def _pooled_captions(
    model: Any, processor: Any, family: Family, pairs: Sequence[Question], layers: tuple[int, ...]
) -> Tensor:
    """Caption spans [layers, batch, width] float32, fed to the language model alone; begin and padding left out."""
    tokens, spoken = zip(*(encode_text(processor.tokenizer, pair.caption or "") for pair in pairs), strict=True)
    rows = [row.tolist() for row in tokens]
    input_ids, attention_mask = pad_rows(rows, padding_id(processor.tokenizer), "right", model.device)
    span, _ = pad_rows([row.tolist() for row in spoken], 0, "right", model.device)
    return _pool(text_hidden_states(model, family, input_ids, attention_mask, layers), layers, span.bool())


def _pool(states: dict[int, Tensor], layers: tuple[int, ...], span: Tensor) -> Tensor:
    return torch.stack([mean_pool(states[layer], span)[0] for layer in layers]).cpu()
