"""Cosines by layer: the mismatch is a derangement, the values are those of a slow unbatched computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import tiny_llava, tiny_picture
from tga.errors import UserError
from tga.evaluation.cosines import derangement, pair_cosines
from tga.evaluation.prompts import prompt_batch, prompt_rows
from tga.evaluation.questions import Question
from tga.vlm.families import family_of

SETTINGS = {"chat_template": "tokenizer", "plain_template": "plain", "seed": 3}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    folder = tmp_path_factory.mktemp("pictures")
    captions = ["A red car.", "A tree.", "Two cats sit on the blue chair.", "A cup of tea.", "A dog and a ball."]
    made = []
    for i, caption in enumerate(captions):
        tiny_picture(i).save(folder / f"{i}.png")
        form = "plain" if i % 2 else "chat"
        made.append(Question(str(i), "", "What is it?", form, folder / f"{i}.png", (), caption))
    return made


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_no_pair_keeps_its_own_caption(count: int) -> None:
    partner = derangement([str(i) for i in range(count)], seed=1)
    assert sorted(partner) == list(range(count))
    assert all(pair != other for pair, other in enumerate(partner))


def test_equal_captions_are_not_called_mismatched_where_avoidable() -> None:
    captions = ["a", "a", "b", "b", "c", "c"]
    for seed in range(20):
        assert all(captions[pair] != captions[other] for pair, other in enumerate(derangement(captions, seed)))


def test_the_seed_decides_the_derangement() -> None:
    captions = [str(i) for i in range(30)]
    assert derangement(captions, 0) == derangement(captions, 0) != derangement(captions, 1)


def test_one_pair_cannot_be_mismatched() -> None:
    with pytest.raises(ValueError, match="two pairs"):
        derangement(["a"], 0)


@torch.no_grad()
def test_values_equal_a_slow_computation(pairs: list[Question]) -> None:
    model, processor = tiny_llava()
    family = family_of(model)
    values = pair_cosines(model, processor, family, pairs, layers="all", batch_size=2, **SETTINGS)
    images, captions = [], []
    for pair in pairs:
        templates = {"chat_template": "tokenizer", "plain_template": "plain"}
        rows = prompt_rows(model, processor, family, [pair], **templates)
        batch = prompt_batch(model, processor, family, rows, [pair.image], padding_side="left")
        states = model(
            input_ids=batch.input_ids, pixel_values=batch.pixel_values, output_hidden_states=True
        ).hidden_states
        is_image = batch.input_ids[0] == model.config.image_token_id
        images.append([state[0, is_image].double().numpy().mean(axis=0) for state in states[:3]])
        ids = torch.tensor([[0, *processor.tokenizer(pair.caption, add_special_tokens=False)["input_ids"]]])
        states = model.model.language_model(input_ids=ids, output_hidden_states=True).hidden_states
        captions.append([state[0, 1:].double().numpy().mean(axis=0) for state in states[:3]])
    image, caption = np.array(images), np.array(captions)
    partner = derangement([pair.caption for pair in pairs], 3)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean())

    for layer in range(3):
        a, b = image[:, layer], caption[:, layer]
        centre = b.mean(axis=0)
        expected = {
            f"matched_layer_{layer}": cosine(a, b),
            f"mismatched_layer_{layer}": cosine(a, b[partner]),
            f"centred_matched_layer_{layer}": cosine(a - centre, b - centre),
            f"centred_mismatched_layer_{layer}": cosine(a - centre, (b - centre)[partner]),
        }
        assert {key: values[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert len(values) == 4 * 4, "layers 0 to 3 of the tiny model"


def test_chosen_layers_and_wrong_ones(pairs: list[Question]) -> None:
    model, processor = tiny_llava()
    family = family_of(model)
    values = pair_cosines(model, processor, family, pairs, layers=[0, 2], batch_size=8, **SETTINGS)
    assert {key.rsplit("_", 1)[1] for key in values} == {"0", "2"}
    with pytest.raises(UserError, match="4.*0 .*to 3"):
        pair_cosines(model, processor, family, pairs, layers=[4], batch_size=8, **SETTINGS)
