"""The exported chat template reads lists of pictures and texts, and gives the prompts of the training."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_llava
from tests.tiny_families import made
from tga.export.chat import exported_chat_template
from tga.vlm.templates import render

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    {"role": "user", "content": "Sure?"},
]
TURNS = [("user", "What is it?"), ("assistant", "A dog."), ("user", "Sure?")]


@pytest.mark.parametrize(
    ("trained_with", "template"),
    [
        ("vicuna_v1", "vicuna_v1"),
        ("llava_llama_2", "llava_llama_2"),
        ("mistral_instruct", "mistral_instruct"),
        ("tokenizer", "tokenizer"),
        ("plain", "tokenizer"),  # the format of captions is none of conversations
        (None, "tokenizer"),
    ],
)
def test_lists_become_the_prompt_of_the_training(trained_with: str | None, template: str) -> None:
    _, processor = tiny_llava()
    expected = render(
        TURNS, template=template, tokenizer=processor.tokenizer, image=True, add_generation_prompt=True
    ).text
    processor.chat_template = exported_chat_template(processor, trained_with)
    assert processor.apply_chat_template(MESSAGES, add_generation_prompt=True) == expected


def test_the_assistants_tokens_stay_marked() -> None:
    _, processor = tiny_llava()
    tokenizer = processor.tokenizer
    tokenizer.chat_template = exported_chat_template(processor, "mistral_instruct")
    found = tokenizer.apply_chat_template(
        MESSAGES[:2], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    spoken = [token for token, own in zip(found["input_ids"], found["assistant_masks"], strict=True) if own]
    assert tokenizer.decode(spoken).strip() == "A dog.</s>"


def test_a_template_that_knows_pictures_is_kept() -> None:
    _, processor = made("qwen2_5_vl")
    assert exported_chat_template(processor, "tokenizer") == processor.chat_template


def test_no_template_stays_none() -> None:
    _, processor = tiny_llava()
    processor.chat_template = processor.tokenizer.chat_template = None
    assert exported_chat_template(processor, "plain") is None
