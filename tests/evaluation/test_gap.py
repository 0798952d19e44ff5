"""The modality gap of a model: the tokens compared are the right ones, in every family, in one pass or in many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.alignment.test_modality_gap import slow_fid
from tests.tiny import SENTENCES, tiny_llava, tiny_picture
from tests.tiny_families import FAMILIES, TEMPLATE, made
from tga.errors import UserError
from tga.evaluation.gap import modality_gap
from tga.evaluation.prompts import prompt_rows
from tga.evaluation.questions import Question, read_questions
from tga.vlm.families import family_of

TEMPLATES = {"chat_template": "tokenizer", "plain_template": "plain"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    """Five pairs of pictures and captions of different length."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i, caption in enumerate(SENTENCES):
        tiny_picture(i).save(folder / f"{i}.png")
        form = "plain" if i % 2 else "chat"
        row = f'{{"id": {i}, "image": "{i}.png", "prompt": "What is it?", "format": "{form}", "caption": "{caption}"}}'
        rows.append(row)
    (folder / "pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return read_questions(folder / "pairs.jsonl")


def measured(pairs: list[Question], **settings: Any) -> dict[str, float]:
    model, processor = tiny_llava()
    chosen = {"layers": "all", "batch_size": 2, **TEMPLATES, **settings}
    return modality_gap(model, processor, family_of(model), pairs, **chosen)


@torch.no_grad()
def slow_states(pairs: list[Question], text: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """By layer 0..3 the image tokens and caption tokens of all pairs, one pair at a time; the last layer un-normed."""
    model, processor = tiny_llava()
    caught: list[torch.Tensor] = []
    model.model.language_model.layers[2].register_forward_hook(lambda _m, _a, out: caught.append(out))
    prompts = prompt_rows(model, processor, family_of(model), pairs, **TEMPLATES)
    image_parts: list[list[np.ndarray]] = [[] for _ in range(4)]
    text_parts: list[list[np.ndarray]] = [[] for _ in range(4)]
    for pair, prompt in zip(pairs, prompts, strict=True):
        caption = processor.tokenizer(pair.caption, add_special_tokens=False)["input_ids"]
        pixels = processor.image_processor(tiny_picture(int(pair.id)), return_tensors="pt")["pixel_values"]
        ids = torch.tensor([prompt + caption if text == "prompt" else prompt])
        seen = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True).hidden_states[:3]
        seen = [*seen, caught.pop()]
        said = seen
        if text == "alone":
            alone = torch.tensor([[processor.tokenizer.bos_token_id, *caption]])
            said = model.model.language_model(input_ids=alone, output_hidden_states=True).hidden_states[:3]
            said = [*said, caught.pop()]
        for layer in range(4):
            image_parts[layer].append(seen[layer][0][ids[0] == model.config.image_token_id].double().numpy())
            text_parts[layer].append(said[layer][0, -len(caption) :].double().numpy())
    return [(np.concatenate(a), np.concatenate(b)) for a, b in zip(image_parts, text_parts, strict=True)]


@pytest.mark.parametrize("text", ["prompt", "alone"])
def test_values_equal_a_slow_computation(pairs: list[Question], text: str) -> None:
    values = measured(pairs, text=text)
    layers = slow_states(pairs, text)
    fids = [slow_fid(v, t) for v, t in layers]
    for layer, (v, t) in enumerate(layers):
        a, b = v.mean(axis=0), t.mean(axis=0)
        norms = np.linalg.norm(v, axis=1).mean() / np.linalg.norm(t, axis=1).mean()
        expected = {
            f"fid_layer_{layer}": fids[layer],
            f"l2_layer_{layer}": np.linalg.norm(a - b),
            f"cosine_layer_{layer}": 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b),
            f"log_norm_ratio_layer_{layer}": np.log(norms),
        }
        assert {key: values[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert values["mir"] == pytest.approx(np.log10(sum(fids[1:])), abs=1e-4)
    assert len(values) == 4 * 4 + 1


def test_text_in_the_prompt_and_alone_differ_behind_the_input_only(pairs: list[Question]) -> None:
    prompt, alone = measured(pairs, text="prompt"), measured(pairs, text="alone")
    assert prompt["fid_layer_0"] == pytest.approx(alone["fid_layer_0"], rel=1e-6)
    assert abs(prompt["fid_layer_2"] - alone["fid_layer_2"]) > 1e-3


def test_groups_of_layers_and_other_batches_change_nothing(pairs: list[Question]) -> None:
    together = measured(pairs)
    assert measured(pairs, stored_mib=0) == together  # one layer at a time
    assert measured(pairs, batch_size=5) == pytest.approx(together, rel=1e-4)
    assert measured(pairs[::-1]) == pytest.approx(together, rel=1e-4)


def test_mir_needs_every_decoder_layer(pairs: list[Question]) -> None:
    values = measured(pairs, layers=[0, 2])
    assert {key.rsplit("_", 1)[1] for key in values} == {"0", "2"}
    assert measured(pairs, layers=[1, 2, 3])["mir"] == pytest.approx(measured(pairs)["mir"], rel=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_measured(name: str, pairs: list[Question]) -> None:
    model, processor = made(name)
    settings = {"chat_template": TEMPLATE[name], "plain_template": "plain", "batch_size": 2}
    values = modality_gap(model, processor, family_of(model), pairs, layers="all", **settings)
    assert len(values) == 4 * 4 + 1 and all(np.isfinite(value) for value in values.values())
    assert all(values[f"fid_layer_{layer}"] > 0 for layer in range(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "caption"}, "Unknown text.*Given: caption. Allowed: prompt, alone"),
        ({"root": "slow"}, "Unknown matrix root"),
        ({"layers": [4]}, "4.*0 .*to 3"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str, pairs: list[Question]) -> None:
    with pytest.raises(UserError, match=message):
        measured(pairs, **settings)
