"""The exported chat template reads lists of pictures and texts, and gives the prompts of the training."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.tiny import CHAT_TEMPLATE, tiny_llava
from tests.tiny_families import made
from tga.export.chat import exported_chat_template
from tga.mini.tokenizer import CHAT_TEMPLATE as MINI_TEMPLATE
from tga.vlm.chat_templates import BUILT_IN
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


# Templates that a tokenizer may bring, all of which know texts only; the last two want them in a list.
OWN = {
    "tiny": CHAT_TEMPLATE,
    "mini": MINI_TEMPLATE,
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "refuses_lists": "{% for m in messages %}{% if m['content'] is not string %}{{ raise_exception('texts only') }}"
    "{% endif %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "parts": "{% for m in messages %}[{{ m['role'] }}] {% for c in m['content'] %}{{ c['text'] }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "chosen_parts": "{% for m in messages %}[{{ m['role'] }}] {% for c in m['content'] "
    "| selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}{% endfor %}",
}
TEXTS = ["What is it?", " Look here:\n", "  ", "and this ", "\n", 'It\'s "red".']
IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


HAND_WRITTEN = [
    [user(IMAGE)],
    [user(IMAGE, text("What is it?"))],
    [user(text("What is it?"), IMAGE)],
    [user(text("Look here:\n"), IMAGE, text("\nWhat is it?"))],
    [user(IMAGE, IMAGE, text("Compare them."))],
    [user(text("Compare "), IMAGE, text(" with "), IMAGE, text("."))],
    [{"role": "system", "content": "Be brief."}, user(text("What is it?"), IMAGE)],
    [{"role": "system", "content": [text("Be "), text("brief.")]}, user(IMAGE, text("What is it?"))],
    [user(IMAGE, text("A?")), {"role": "assistant", "content": "B."}, user(text(" C? "))],
    [user(text(" A? ")), {"role": "assistant", "content": [text(" B. ")]}, user(text("C?"), IMAGE)],
    [user(text("A?"), IMAGE), {"role": "assistant", "content": "B."}, user(IMAGE, text("C?"), IMAGE)],
    [{"role": "user", "content": "What is it?"}],
    [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "A dog."}],
    [{"role": "user", "content": "What is it?\n<image>"}],
    [{"role": "user", "content": "Compare <image> with <image>."}],
]


def drawn(seed: int) -> list[dict[str, Any]]:
    """A conversation of random turns: texts and pictures in any order, as a list or spelled out in a text."""
    rng = random.Random(seed)
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        parts = [rng.choice([IMAGE, *map(text, TEXTS)]) for _ in range(rng.randint(1, 4))]
        spelled = "".join(part.get("text", "<image>") for part in parts)
        messages += [user(*parts) if rng.random() < 0.7 else {"role": "user", "content": spelled}]
        messages += [{"role": "assistant", "content": rng.choice(TEXTS)}]
    return messages[: -rng.randint(0, 1) or None]


def turns(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The same conversation as a record of the training has it."""
    found = []
    for message in messages:
        content = message["content"]
        parts = [text(content)] if isinstance(content, str) else content
        found.append((message["role"], "".join(part.get("text", "<image>") for part in parts)))
    return found


def processor_with(template: str) -> Any:
    _, processor = tiny_llava()
    processor.chat_template = processor.tokenizer.chat_template = OWN.get(template, processor.chat_template)
    return processor


@pytest.mark.parametrize("template", [name for name in BUILT_IN if name != "plain"] + list(OWN))
def test_messages_become_the_prompt_of_the_training(template: str) -> None:
    processor = processor_with(template)
    trained_with = template if template in BUILT_IN else "tokenizer"
    exported = exported_chat_template(processor, trained_with)
    for messages in itertools.chain(HAND_WRITTEN, map(drawn, range(60))):
        conversation = turns(messages)
        pictures = any("<image>" in words for _, words in conversation)
        generating = messages[-1]["role"] == "user"
        expected = render(
            conversation, template=trained_with, tokenizer=processor.tokenizer, image=pictures,
            add_generation_prompt=generating,
        ).text  # fmt: skip
        processor.chat_template = exported
        found = processor.apply_chat_template(messages, add_generation_prompt=generating)
        assert found == expected, messages


def test_no_newline_strays_into_a_prompt_with_the_words_first() -> None:
    processor = processor_with("")
    processor.chat_template = exported_chat_template(processor, "mistral_instruct")
    for messages in ([user(text("What is it?"), IMAGE)], [user(IMAGE, text("What is it?"))]):
        assert processor.apply_chat_template(messages) == "<s>[INST] <image>\nWhat is it? [/INST]"
    assert processor.apply_chat_template([user(IMAGE)]) == "<s>[INST] <image> [/INST]"
    two = [user(IMAGE, IMAGE, text("Compare them."))]
    assert processor.apply_chat_template(two) == "<s>[INST] <image><image>Compare them. [/INST]"


def test_a_picture_by_its_address_is_one_and_what_a_message_says_beside_its_content_stays() -> None:
    processor = processor_with("")
    own = "{% for m in messages %}{{ m['content'] }}{{ m['tool_calls'] | default('') }}{% endfor %}"
    processor.chat_template = processor.tokenizer.chat_template = own
    exported = exported_chat_template(processor, "tokenizer")
    messages = [
        user({"type": "image_url", "image_url": {"url": "a.png"}}, text("Why?")),
        {"role": "assistant", "content": "", "tool_calls": "zoom(0, 0)"},
    ]
    rendered = processor.tokenizer.apply_chat_template(messages, chat_template=exported, tokenize=False)
    assert rendered == "<image>\nWhy?zoom(0, 0)"
