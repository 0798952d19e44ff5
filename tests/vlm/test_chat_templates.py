"""The built-in formats against hand-written texts of a conversation of three turns, and their label masks."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_tokenizer
from tga.errors import UserError
from tga.vlm.chat_templates import BUILT_IN
from tga.vlm.templates import render
from tga.vlm.token_spans import encode

TURNS = [
    ("user", "<image>\nWhat is it?"),
    ("assistant", "A red car."),
    ("user", "Is it old?"),
    ("assistant", "No, new."),
    ("user", "Whose?"),
    ("assistant", "Ann's."),
]
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
# Written by hand: what is learnt stands between double angle brackets.
EXPECTED = {
    "plain": "<s><image>\n«A red car.</s>»Is it old?\n«No, new.</s>»Whose?\n«Ann's.</s>»",
    "vicuna_v1": f"<s>{VICUNA_SYSTEM}USER: <image>\nWhat is it? ASSISTANT: «A red car.</s>»USER: Is it old? ASSISTANT: "
    "«No, new.</s>»USER: Whose? ASSISTANT: «Ann's.</s>»",
    "llava_llama_2": f"<s>[INST] <<SYS>>\n{LLAMA_2_SYSTEM}\n<</SYS>>\n\n<image>\nWhat is it? [/INST] «A red car. </s>»"
    "<s>[INST] Is it old? [/INST] «No, new. </s>»<s>[INST] Whose? [/INST] «Ann's. </s>»",
    "mistral_instruct": "<s>[INST] <image>\nWhat is it? [/INST] «A red car.</s>»"
    "[INST] Is it old? [/INST] «No, new.</s>»"
    "[INST] Whose? [/INST] «Ann's.</s>»",
    "instructblip": "<image><s>What is it? «A red car.</s>»Is it old? «No, new.</s>»Whose? «Ann's.</s>»",
}


def spans(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its brackets, and the places between them."""
    text, places = "", []
    for piece in marked.split("«"):
        learnt, bracket, rest = piece.partition("»")
        if bracket:
            places.append((len(text), len(text) + len(learnt)))
        text += learnt + rest
    return text, places


def test_every_format_has_its_expectation() -> None:
    assert set(EXPECTED) == set(BUILT_IN)


@pytest.mark.parametrize("template", EXPECTED)
def test_the_text_and_what_is_learnt_of_it(template: str) -> None:
    rendered = render(TURNS, template=template, tokenizer=tiny_tokenizer(), image=True)
    text, places = spans(EXPECTED[template])
    assert rendered.text == text
    assert list(rendered.assistant) == places


@pytest.mark.parametrize("template", EXPECTED)
def test_the_labels_are_the_tokens_between_the_brackets(template: str) -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode(render(TURNS, template=template, tokenizer=tokenizer, image=True), tokenizer, image_tokens=3)
    expected_ids: list[int] = []
    expected_learnt: list[bool] = []
    for number, piece in enumerate(EXPECTED[template].replace("<image>", "<image>" * 3).replace("»", "«").split("«")):
        ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
        expected_ids += ids
        expected_learnt += [number % 2 == 1] * len(ids)
    # The last word before a bracket and the first behind it never share a token here: each piece is tokenized alone.
    assert tokenizer.decode(encoded.input_ids) == tokenizer.decode(expected_ids)
    learnt = encoded.labels != -100
    assert tokenizer.decode(encoded.input_ids[learnt]).replace(" ", "") == tokenizer.decode(
        torch.tensor(expected_ids)[torch.tensor(expected_learnt)]
    ).replace(" ", "")
    assert torch.equal(encoded.labels[learnt], encoded.input_ids[learnt])


@pytest.mark.parametrize("template", [name for name, chat in BUILT_IN.items() if not chat.picture_first])
def test_transformers_marks_the_same_tokens(template: str) -> None:
    """`return_assistant_tokens_mask` of plain transformers, on the Jinja text itself."""
    tokenizer = tiny_tokenizer()
    turns = [("user", "<image>"), *TURNS[1:]] if template == "plain" else TURNS
    found = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        chat_template=BUILT_IN[template].jinja, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    ours = encode(render(TURNS, template=template, tokenizer=tokenizer, image=True), tokenizer, image_tokens=1)
    assert found["input_ids"] == ours.input_ids.tolist()
    assert found["assistant_masks"] == (ours.labels != -100).long().tolist()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("vicuna_v1", "<s>Be brief. USER: Whose? ASSISTANT:"),
        ("llava_llama_2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhose? [/INST]"),
        ("mistral_instruct", "<s>[INST] Be brief.\n\nWhose? [/INST]"),
        ("instructblip", "<s>Be brief. Whose?"),
    ],
)
def test_a_system_text_stands_where_the_format_has_it(template: str, expected: str) -> None:
    turns = [("system", "Be brief."), ("user", "Whose?")]
    rendered = render(turns, template=template, tokenizer=tiny_tokenizer(), image=False, add_generation_prompt=True)
    assert rendered.text == expected and rendered.assistant == ()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("vicuna_v1", f"<s>{VICUNA_SYSTEM}USER: A? ASSISTANT: «B.</s>»Be brief. In English. USER: C? ASSISTANT:"),
        (
            "llava_llama_2",
            f"<s>[INST] <<SYS>>\n{LLAMA_2_SYSTEM}\n<</SYS>>\n\nA? [/INST] «B. </s>»"
            "<s>[INST] <<SYS>>\nBe brief.\n\nIn English.\n<</SYS>>\n\nC? [/INST]",
        ),
        ("mistral_instruct", "<s>[INST] A? [/INST] «B.</s>»[INST] Be brief.\n\nIn English.\n\nC? [/INST]"),
    ],
)
def test_a_later_system_text_is_not_dropped(template: str, expected: str) -> None:
    turns = [
        ("user", "A?"), ("assistant", "B."), ("system", "Be brief."), ("system", "In English."), ("user", "C?"),
    ]  # fmt: skip
    rendered = render(turns, template=template, tokenizer=tiny_tokenizer(), image=False, add_generation_prompt=True)
    text, places = spans(expected)
    assert rendered.text == text and list(rendered.assistant) == places


@pytest.mark.parametrize("template", ["llava_llama_2", "mistral_instruct"])
def test_a_system_text_that_opens_no_turn_is_refused(template: str) -> None:
    turns = [("user", "A?"), ("assistant", "B."), ("system", "Be brief.")]
    with pytest.raises(UserError, match="A system message needs a user turn after it"):
        render(turns, template=template, tokenizer=tiny_tokenizer(), image=False)


def test_an_empty_system_text_takes_llama_2s_own_away() -> None:
    turns = [("system", ""), ("user", "A?")]
    rendered = render(turns, template="llava_llama_2", tokenizer=tiny_tokenizer(), image=False)
    assert rendered.text == "<s>[INST] A? [/INST]"


def test_several_pictures_stay_where_they_are_in_a_turn() -> None:
    turns = [("user", "Compare <image> with <image>."), ("assistant", "Equal.")]
    rendered = render(turns, template="mistral_instruct", tokenizer=tiny_tokenizer(), image=True)
    assert rendered.text == "<s>[INST] Compare <image> with <image>. [/INST] Equal.</s>"
    first = render(turns, template="instructblip", tokenizer=tiny_tokenizer(), image=True)
    assert first.text == "<image><image><s>Compare  with . Equal.</s>"
    assert [first.text[a:b] for a, b in first.assistant] == ["Equal.</s>"]
