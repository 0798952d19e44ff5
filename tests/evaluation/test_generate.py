"""Batched greedy answers against transformers' own generate, one question at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_llava, tiny_picture
from tga.errors import UserError
from tga.evaluation.generate import answer_questions, end_token_ids
from tga.evaluation.prompts import prompt_batch, prompt_rows
from tga.evaluation.questions import Question
from tga.vlm.families import family_of

TEMPLATES = {"chat_template": "tokenizer", "plain_template": "plain"}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    folder = tmp_path_factory.mktemp("pictures")
    prompts = ["What is it?", "Describe the image in some detail.", "Is there a dog?", "Hi", "How many cats sit there?"]
    made = []
    for i in range(15):
        picture: Path | None = None
        if i % 3:
            picture = folder / f"{i}.png"
            tiny_picture(i).save(picture)
        made.append(Question(str(i), "", prompts[i % 5], "plain" if i % 5 == 1 else "chat", picture))
    return made


def varied_llava():
    """A tiny LLaVA whose answers end at different lengths: its end token is likelier than in a random one."""
    model, processor = tiny_llava()
    with torch.no_grad():
        model.lm_head.weight[1] *= 2.5
    return model, processor, family_of(model)


def reference(model, processor, family, question: Question, max_new_tokens: int) -> str:
    """transformers' generate on one unpadded question."""
    rows = prompt_rows(model, processor, family, [question], **TEMPLATES)
    pictures = [question.image] if question.image else []
    batch = prompt_batch(model, processor, family, rows, pictures, padding_side="left")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.pixel_values is not None:
        inputs["pixel_values"] = batch.pixel_values
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=1, pad_token_id=2)
    return processor.tokenizer.decode(tokens[0, batch.input_ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_answers_equal_those_of_generate(questions: list[Question], batch_size: int) -> None:
    model, processor, family = varied_llava()
    settings = {"batch_size": batch_size, "max_new_tokens": 12, "show_progress": False}
    answers = answer_questions(model, processor, family, questions, **settings)
    assert answers == [reference(model, processor, family, question, 12) for question in questions]
    assert len({len(answer) for answer in answers}) > 3, "the answers must end at different lengths to test anything"
    assert len(set(answers)) > 5


def test_a_text_question_never_meets_vision_tower_or_projector(questions: list[Question]) -> None:
    model, processor, family = varied_llava()
    texts = [question for question in questions if question.image is None]
    before = answer_questions(model, processor, family, texts, show_progress=False, max_new_tokens=6)
    model.model.vision_tower = None
    model.model.multi_modal_projector = None
    assert answer_questions(model, processor, family, texts, show_progress=False, max_new_tokens=6) == before


def test_module_modes_come_back(questions: list[Question]) -> None:
    model, processor, family = varied_llava()
    model.model.multi_modal_projector.train()
    answer_questions(model, processor, family, questions[:2], show_progress=False, max_new_tokens=1)
    assert model.model.multi_modal_projector.training and not model.lm_head.training


def test_prompts_hold_the_picture_and_the_question(questions: list[Question]) -> None:
    model, processor, family = varied_llava()
    rows = prompt_rows(model, processor, family, questions[:2], **TEMPLATES)
    texts = processor.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    assert texts[0] == "<s>USER: What is it? ASSISTANT:"
    assert texts[1] == "<s><image><image><image><image>\n"


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    model, processor, family = varied_llava()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    question = Question("1", "", "What?", "chat", tmp_path / "broken.png")
    with pytest.raises(UserError, match="cannot be read.*broken.png"):
        answer_questions(model, processor, family, [question], show_progress=False)


def test_end_tokens_come_from_tokenizer_and_generation_config() -> None:
    model, processor, _ = varied_llava()
    model.generation_config.eos_token_id = [7, 5]
    assert end_token_ids(model, processor) == (1, 5, 7)


def test_a_corrected_model_hears_of_every_batch_with_pictures_and_of_rows_that_end(questions: list[Question]) -> None:
    model, processor, family = varied_llava()
    asked: list[list[str]] = []
    present: list[list[str]] = []

    class Noted:
        def __init__(self, ids: list[str]) -> None:
            self.ids = ids

        def keep(self, rows: torch.Tensor) -> None:
            self.ids = [self.ids[row] for row in rows.tolist()]
            present.append(self.ids)

    @contextmanager
    def steer(batch: Sequence[Question]) -> Iterator[Noted]:
        asked.append([question.id for question in batch])
        with torch.no_grad():
            model.lm_head.weight[7] *= 3.0
            yield Noted(asked[-1])
            model.lm_head.weight[7] /= 3.0

    settings = {"batch_size": 5, "max_new_tokens": 12, "show_progress": False}
    plain = answer_questions(model, processor, family, questions, **settings)
    steered = answer_questions(model, processor, family, questions, steer=steer, **settings)
    with_pictures = {question.id for question in questions if question.image is not None}
    assert {identity for batch in asked for identity in batch} == with_pictures and len(asked) == 2
    assert present and all(set(ids) < with_pictures for ids in present)
    changed = {q.id for q, ours, theirs in zip(questions, steered, plain, strict=True) if ours != theirs}
    assert changed and changed <= with_pictures
