"""Templates: exact texts, exact spans, and agreement with the tokenizer's own chat rendering."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_tokenizer
from tga.errors import UserError
from tga.vlm.templates import Rendered, render

TURNS = [("user", "What is it?\n<image>"), ("assistant", "A dog."), ("user", "Sure?"), ("assistant", "Yes.")]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def spoken(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.assistant]


def test_plain_drops_the_users_words_and_puts_retrieved_text_before_the_image() -> None:
    tokenizer = tiny_tokenizer()
    rendered = render(TURNS[:2], template="plain", tokenizer=tokenizer, image=True)
    assert rendered.text == "<s><image>\nA dog.</s>"
    assert spoken(rendered) == ["A dog.</s>"]
    assert rendered.retrieved is None
    with_text = render(TURNS[:2], template="plain", tokenizer=tokenizer, image=True, retrieved="a cat <image>sits")
    assert with_text.text == "<s>a cat sits\n<image>\nA dog.</s>"
    start, end = with_text.retrieved
    assert with_text.text[start:end] == "a cat sits"
    assert spoken(with_text) == ["A dog.</s>"]


def test_vicuna_several_turns() -> None:
    rendered = render(TURNS, template="vicuna_v1", tokenizer=tiny_tokenizer(), image=True, retrieved="a cat")
    expected = "USER: a cat\n<image>\nWhat is it? ASSISTANT: A dog.</s>USER: Sure? ASSISTANT: Yes.</s>"
    assert rendered.text == "<s>" + SYSTEM + expected
    assert spoken(rendered) == ["A dog.</s>", "Yes.</s>"]


def test_a_system_turn_replaces_vicunas_own() -> None:
    turns = [("system", "Be brief."), *TURNS[2:]]
    rendered = render(turns, template="vicuna_v1", tokenizer=tiny_tokenizer(), image=False)
    assert rendered.text == "<s>Be brief. USER: Sure? ASSISTANT: Yes.</s>"


@pytest.mark.parametrize("template", ["plain", "vicuna_v1", "tokenizer"])
def test_the_prompt_for_generation_is_the_beginning_of_the_training_text(template: str) -> None:
    tokenizer = tiny_tokenizer()
    whole = render(TURNS[:2], template=template, tokenizer=tokenizer, image=True)
    prompt = render(TURNS[:1], template=template, tokenizer=tokenizer, image=True, add_generation_prompt=True)
    assert whole.text.startswith(prompt.text)
    assert prompt.text.rstrip() == whole.text[: whole.assistant[0][0]].rstrip()
    assert prompt.assistant == ()


def test_the_tokenizers_template_gives_what_apply_chat_template_gives() -> None:
    tokenizer = tiny_tokenizer()
    rendered = render(TURNS[2:], template="tokenizer", tokenizer=tokenizer, image=False)
    messages = [{"role": role, "content": text} for role, text in TURNS[2:]]
    assert rendered.text == tokenizer.apply_chat_template(messages, tokenize=False)
    assert spoken(rendered) == ["Yes.</s>"]


def test_a_template_without_generation_marks_yields_the_answers_and_their_end() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
        "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    rendered = render(TURNS, template="tokenizer", tokenizer=tokenizer, image=True)
    assert rendered.text == "<s>[INST] <image>\nWhat is it? [/INST] A dog. </s>[INST] Sure? [/INST] Yes. </s>"
    assert spoken(rendered) == ["A dog. </s>", "Yes. </s>"]


def test_a_template_that_reads_lists_of_contents_is_served() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] | upper }}: "
        "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %} {% endfor %}"
    )
    rendered = render(TURNS[:2], template="tokenizer", tokenizer=tokenizer, image=True, retrieved="a cat")
    assert rendered.text == "USER: a cat\n<image>\nWhat is it? ASSISTANT: A dog. "
    assert spoken(rendered) == ["A dog."]


def test_a_template_that_alters_the_text_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(UserError, match="drops or alters the text"):
        render(TURNS, template="tokenizer", tokenizer=tokenizer, image=True)


def test_a_template_that_drops_the_system_text_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] + ' ' }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match="drops or alters the text.*turns of system, user"):
        render([("system", "Be brief."), ("user", "Hi.")], template="tokenizer", tokenizer=tokenizer, image=False)


def test_a_template_that_raises_is_one_message() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="refuses the conversation: roles must alternate"):
        render(TURNS, template="tokenizer", tokenizer=tokenizer, image=True)


@pytest.mark.parametrize(
    ("turns", "template", "image", "message"),
    [
        (
            TURNS,
            "vicuna_v2",
            True,
            "Allowed: plain, vicuna_v1, llava_llama_2, .*tokenizer",
        ),
        ([("human", "hi")], "plain", False, "Allowed: system, user, assistant"),
        (TURNS, "plain", False, "in a conversation without a picture"),
        ([("user", "hi"), ("assistant", "<image>")], "plain", True, "in a turn of the assistant"),
        ([("assistant", "hi")], "plain", True, "needs a user turn"),
        ([("user", "\ufdd0")], "plain", False, "noncharacter"),
    ],
)
def test_mistakes_are_named(turns, template: str, image: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        render(turns, template=template, tokenizer=tiny_tokenizer(), image=image)


def test_no_chat_template_is_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        render(TURNS, template="tokenizer", tokenizer=tokenizer, image=True)
