"""Every family, on a tiny random model of its real class: its answers, and how far pictures are from captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny_families import FAMILIES, LAYERS, TEMPLATE, made, write_pictures
from tga.evaluation.cosines import pair_cosines
from tga.evaluation.generate import answer_questions
from tga.evaluation.questions import Question
from tga.vlm.families import family_of
from tga.vlm.pictures import Pictures
from tga.vlm.templates import render

every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def asked(identity: str, prompt: str, **values: Any) -> Question:
    return Question(identity, "", prompt, "chat", **values)


@every_family
def test_answers_are_those_of_generate(name: str, pictures: dict[str, Path]) -> None:
    model, processor = made(name)
    model.requires_grad_(False)
    tokenizer, template = processor.tokenizer, TEMPLATE[name]
    questions = [
        asked("wide", "What is it?", image=pictures["wide"]),
        asked("square", "Is it red or green, and why?", image=pictures["square"]),
        asked("words", "How many cats?"),
    ]
    answers = answer_questions(
        model, processor, family_of(model), questions, chat_template=template, batch_size=4, max_new_tokens=6,
        show_progress=False,
    )  # fmt: skip
    codec = Pictures(processor)
    for question, answer in zip(questions[:2], answers[:2], strict=True):
        rendered = render(
            [("user", question.prompt)], template=template, tokenizer=tokenizer, image=True,
            add_generation_prompt=True, image_token=codec.token, picture=codec.text,
        )  # fmt: skip
        text, options = rendered.text, {"add_special_tokens": False}
        if name == "instructblip":
            text, options = rendered.text.removeprefix("<image><s>"), {}
        image = Image.open(question.image).convert("RGB")
        inputs = processor(images=[[image]], text=[text], return_tensors="pt", **options)
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        expected = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert answer == expected and answer
    assert answers[2]


@every_family
def test_the_modality_gap_is_measured(name: str, pictures: dict[str, Path]) -> None:
    model, processor = made(name)
    pairs = [asked(key, "What is it?", image=path, caption=f"A {key} picture.") for key, path in pictures.items()]
    template = TEMPLATE[name]
    found = pair_cosines(
        model, processor, family_of(model), pairs, layers="all", chat_template=template, plain_template=template,
        batch_size=2, seed=0,
    )  # fmt: skip
    assert {f"matched_layer_{layer}" for layer in range(LAYERS + 1)} <= set(found)
    assert all(-1 <= value <= 1 for value in found.values()) and len(set(found.values())) > LAYERS
