"""The modality gap of a model: the states of image tokens and of caption tokens over many pairs, layer by layer.

The measures are in `tga.alignment.modality_gap`. Medians need all tokens of a layer at once, so the states are kept, in
the model's dtype on the CPU, until their layer is measured. Where those of all layers would take more than
`STORED_MIB`, the layers are measured in groups, each with a pass of its own over the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from retrieval_index.visible_text import visible
from tga.alignment.layers import measured_layers
from tga.alignment.modality_gap import layer_gap, modality_integration_rate
from tga.errors import UserError
from tga.evaluation.prompts import prompt_batch, prompt_rows
from tga.evaluation.questions import Question
from tga.vlm.families import Family, component, image_token_id, num_layers
from tga.vlm.hidden_states import multimodal_hidden_states, text_hidden_states
from tga.vlm.modes import evaluating
from tga.vlm.padding import pad_rows, padding_id
from tga.vlm.pictures import Pictures
from tga.vlm.token_spans import encode_text

TEXTS = ("prompt", "alone")
STORED_MIB = 2048
States = dict[int, tuple[Tensor, Tensor]]


def modality_gap(
    model: Any,
    processor: Any,
    family: Family,
    pairs: Sequence[Question],
    *,
    layers: str | Sequence[int],
    text: str = "prompt",
    root: str = "accurate",
    chat_template: str,
    plain_template: str,
    batch_size: int,
    description: str = "modality gap",
    show_progress: bool = False,
    stored_mib: int = STORED_MIB,
) -> dict[str, float]:
    """`{fid,l2,cosine,log_norm_ratio}_layer_<l>`, and `mir` where all decoder layers 1..L are measured.

    Args:
        pairs: questions with a picture and a caption.
        layers: "all" for 0..L, or numbers in 0..L; 0 is the model's input.
        text: "prompt": the caption is the answer that follows the picture in the prompt, as in the public code of MIR;
            "alone": it is fed to the language model alone. Its tokens are the same.
        root: "accurate" or "fast", see `tga.alignment.modality_gap`.
        batch_size: pairs at once.
        stored_mib: states kept at a time, in MiB; a single layer may take more.

    Raises:
        UserError: an unknown `text` or `root`, a layer outside 0..L, or fewer than two tokens of a kind.
    """
    if text not in TEXTS:
        remedy = "evaluation.metrics.NAME={file: PATH, kind: modality_gap, text: prompt}"
        raise UserError("Unknown text of the modality gap", given=text, allowed=", ".join(TEXTS), remedy=remedy)
    last = num_layers(model, family)
    chosen = measured_layers(layers, last)
    values: dict[str, float] = {}
    distances: dict[int, float] = {}
    with evaluating(model), torch.inference_mode():
        templates = {"chat_template": chat_template, "plain_template": plain_template}
        prompts = prompt_rows(model, processor, family, pairs, **templates)
        captions = [encode_text(processor.tokenizer, pair.caption or "")[0].tolist() for pair in pairs]
        groups = _groups(model, family, chosen, prompts, captions, stored_mib)
        with tqdm(
            total=len(pairs) * len(groups), desc=visible(description), unit="pair", disable=not show_progress
        ) as bar:
            for group in groups:
                reader = _Reader(model, processor, family, group, text)
                states = _gathered(reader, pairs, prompts, batch_size, group, bar)
                for layer in group:
                    gap = layer_gap(*(side.to(model.device) for side in states.pop(layer)), root=root)
                    values |= {f"{name}_layer_{layer}": value for name, value in vars(gap).items()}
                    distances[layer] = gap.fid
    if set(range(1, last + 1)) <= set(distances):
        values["mir"] = modality_integration_rate([distances[layer] for layer in range(1, last + 1)])
    return values


class _Reader:
    """The token states of a batch of pairs at some layers."""

    def __init__(self, model: Any, processor: Any, family: Family, layers: tuple[int, ...], text: str) -> None:
        self.model, self.processor, self.family, self.layers, self.text = model, processor, family, layers, text

    def __call__(self, pairs: Sequence[Question], prompts: Sequence[Sequence[int]]) -> States:
        """Layer -> states of the image tokens and of the caption tokens, `[tokens, width]` each, on the CPU."""
        encoded = [encode_text(self.processor.tokenizer, pair.caption or "") for pair in pairs]
        said = [ids[mask].tolist() for ids, mask in encoded]
        follows = said if self.text == "prompt" else [[] for _ in pairs]
        states, ids, lengths = self._multimodal(pairs, prompts, follows)
        image = ids == image_token_id(self.model, self.family)
        if self.text == "prompt":
            places = torch.arange(ids.shape[1], device=ids.device)
            starts = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)
            spoken = (places >= starts[:, None]) & (places < lengths[:, None])
            texts = states
        else:
            rows = [row.tolist() for row, _ in encoded]
            row_ids, attention = pad_rows(rows, padding_id(self.processor.tokenizer), "right", self.model.device)
            spoken = pad_rows([mask.tolist() for _, mask in encoded], 0, "right", self.model.device)[0].bool()
            texts = text_hidden_states(self.model, self.family, row_ids, attention, self.layers)
        return {layer: (states[layer][image].cpu(), texts[layer][spoken].cpu()) for layer in self.layers}

    def _multimodal(
        self, pairs: Sequence[Question], prompts: Sequence[Sequence[int]], follows: Sequence[Sequence[int]]
    ) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        """States, token ids `[batch, tokens]` and row lengths of the prompts with what follows them."""
        pictures = [pair.image for pair in pairs if pair.image is not None]
        # From the prompts alone: a Q-Former reads them too, and must not see the caption.
        batch = prompt_batch(self.model, self.processor, self.family, prompts, pictures, padding_side="right")
        rows = [[*prompt, *more] for prompt, more in zip(prompts, follows, strict=True)]
        ids, attention = pad_rows(rows, padding_id(self.processor.tokenizer), "right", self.model.device)
        told = Pictures(self.processor, self.family).token_inputs(ids)
        inputs = batch.model_inputs() | {"input_ids": ids, "attention_mask": attention, **told}
        _, states = multimodal_hidden_states(self.model, self.family, self.layers, **inputs)
        return states, ids, attention.sum(dim=1)


def _groups(
    model: Any,
    family: Family,
    layers: tuple[int, ...],
    prompts: Sequence[Sequence[int]],
    captions: Sequence[Sequence[int]],
    stored_mib: int,
) -> list[tuple[int, ...]]:
    """The layers in groups whose states take no more than `stored_mib`, at least one layer each."""
    image = image_token_id(model, family)
    tokens = sum(sum(identity == image for identity in row) for row in prompts) + sum(map(len, captions))
    weight = component(model, family.embed_tokens).weight
    assert isinstance(weight, Tensor)
    per_layer = tokens * weight.shape[1] * weight.element_size()
    size = max(1, stored_mib * 2**20 // max(1, per_layer))
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _gathered(
    reader: _Reader,
    pairs: Sequence[Question],
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    layers: tuple[int, ...],
    bar: Any,
) -> States:
    """Layer -> all image tokens and all caption tokens of the pairs, `[tokens, width]`."""
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    for rows in _chunks(len(pairs), batch_size):
        found = reader(pairs[rows], prompts[rows])
        for layer in layers:
            parts[layer].append(found[layer])
        bar.update(len(pairs[rows]))
    return {
        layer: (torch.cat([p[0] for p in found]), torch.cat([p[1] for p in found])) for layer, found in parts.items()
    }


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
