"""Conversation -> prompt text, with the places of the assistant's words and of the retrieved text in it.

Three templates: `plain` is LLaVA's first stage (`{bos}[retrieved\\n]<image>\\n{caption}{eos}`; the user's words are
dropped where there is an image), `vicuna_v1` the format of LLaVA-1.5's second stage, `tokenizer` the chat template
that the tokenizer brings. All are rendered by the same Jinja code.

Places are found without searching for text: each turn goes into the template between two Unicode noncharacters,
which are read off and removed after rendering. That works for any template that repeats the text unchanged, also
those that do not mark the assistant's turn with `{% generation %}`. Retrieved text stands before the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from tga.errors import UserError

PLAIN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{{ '\n' }}{% endif %}{% endfor %}"
)
VICUNA_V1 = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}{{ ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' }}{{ message['content'] }}{{ ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' }}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEMPLATES = ("plain", "vicuna_v1", "tokenizer")
ROLES = ("system", "user", "assistant")

_ASSISTANT, _USER, _RETRIEVED = "\ufdd0\ufdd1", "\ufdd2\ufdd3", "\ufdd4\ufdd5"
_MARKS = re.compile("[\ufdd0-\ufdd5]")


@dataclass(frozen=True)
class Rendered:
    """A prompt and its spans, in characters of `text`, end exclusive.

    Attributes:
        text: the whole prompt, special tokens spelled out, one `<image>` per picture.
        assistant: what the model must learn to say, turn by turn, end-of-turn token included.
        retrieved: the retrieved text, or None where there is none.
    """

    text: str
    assistant: tuple[tuple[int, int], ...]
    retrieved: tuple[int, int] | None


def render(
    turns: Sequence[tuple[str, str]],
    *,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    image: bool,
    retrieved: str | None = None,
    add_generation_prompt: bool = False,
    image_token: str = "<image>",
) -> Rendered:
    """Render a conversation.

    Args:
        turns: (role, text) pairs, roles "system", "user", "assistant". Where a user turn holds one image token, it
            moves to the turn's beginning, as LLaVA does; where `image` is True and no turn holds one, it is added
            to the first user turn.
        template: "plain", "vicuna_v1" or "tokenizer".
        image: the conversation has a picture.
        retrieved: text to put before the image (or before the first user turn of a conversation without one).
        add_generation_prompt: end where the model's answer begins.

    Raises:
        UserError: an unknown template or role, an image token without a picture, or a chat template that refuses the
            conversation or alters its text.
    """
    messages = _messages(turns, template, image, retrieved, image_token)
    chat_template = _chat_template(template, tokenizer)
    marked, generated = _render_jinja(messages, chat_template, tokenizer, add_generation_prompt)
    if not _complete(marked, messages):
        listed = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        marked, generated = _render_jinja(listed, chat_template, tokenizer, add_generation_prompt)
    if not _complete(marked, messages):
        raise UserError(
            "The chat template drops or alters the text of a turn, so its tokens cannot be told apart",
            given=f"template {template!r}",
            allowed="a template that repeats each turn unchanged",
            remedy="data.template=vicuna_v1",
        )
    spans = generated or _spans_with_end(marked, tokenizer.eos_token)
    places = _spans(marked, _RETRIEVED)
    return Rendered(
        text=_MARKS.sub("", marked),
        assistant=tuple(_unmarked(marked, span) for span in spans),
        retrieved=_unmarked(marked, places[0]) if places else None,
    )


def _messages(
    turns: Sequence[tuple[str, str]], template: str, image: bool, retrieved: str | None, image_token: str
) -> list[dict[str, Any]]:
    _check_turns(turns, image, image_token)
    users = [i for i, (role, _) in enumerate(turns) if role == "user"]
    if (image or retrieved) and not users:
        given = [role for role, _ in turns]
        raise UserError("A picture or retrieved text needs a user turn", given=given, remedy="add one")
    with_image = [i for i in users if image_token in turns[i][1]] or (users[:1] if image else [])
    holder = (with_image or users or [-1])[0]
    messages = []
    for i, (role, text) in enumerate(turns):
        if i in with_image:
            text = _image_first(text, image_token, words=template != "plain")
        if role in ("user", "assistant"):
            text = _mark(text, _USER if role == "user" else _ASSISTANT)
        if retrieved and i == holder:
            text = _mark(retrieved.replace(image_token, ""), _RETRIEVED) + "\n" + text
        messages.append({"role": role, "content": text})
    return messages


def _check_turns(turns: Sequence[tuple[str, str]], image: bool, image_token: str) -> None:
    for role, text in turns:
        if role not in ROLES:
            raise UserError("Unknown role of a turn", given=role, allowed=", ".join(ROLES), remedy="rename it")
        if image_token in text and (role != "user" or not image):
            where = f"in a turn of the {role}" if role != "user" else "in a conversation without a picture"
            raise UserError(f"The image token {image_token} stands {where}", given=text[:200], remedy="take it out")
        if _MARKS.search(text):
            problem = "A turn holds a Unicode noncharacter (U+FDD0 to U+FDD5)"
            raise UserError(problem, given=ascii(text[:200]), remedy="take it out")


def _image_first(text: str, image_token: str, words: bool) -> str:
    count = text.count(image_token)
    if count > 1 and words:
        return text
    rest = text.replace(image_token, "").strip() if words else ""
    head = image_token * max(count, 1)
    return f"{head}\n{rest}" if rest else head


def _chat_template(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if template == "plain":
        return PLAIN
    if template == "vicuna_v1":
        return VICUNA_V1
    if template == "tokenizer":
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        if own:
            return str(own)
        raise UserError(
            "The tokenizer has no chat template",
            given=tokenizer.name_or_path or type(tokenizer).__name__,
            allowed="plain, vicuna_v1",
            remedy="data.template=vicuna_v1",
        )
    raise UserError("Unknown template", given=template, allowed=", ".join(TEMPLATES), remedy="data.template=...")


def _render_jinja(
    messages: list[dict[str, Any]], chat_template: str, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    """Marked text and, where the template says them, the assistant's spans in it."""
    marks_generation = re.search(r"\{%-?\s*generation\s*-?%\}", chat_template) is not None
    specials = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    try:
        rendered, generated = render_jinja_template(
            conversations=[messages],
            chat_template=chat_template,
            return_assistant_tokens_mask=marks_generation,
            add_generation_prompt=add_generation_prompt,
            **specials,
        )
    except (TemplateError, TypeError) as error:
        raise UserError(
            f"The chat template refuses the conversation: {error}",
            given=[message["role"] for message in messages],
            remedy="data.template=vicuna_v1",
        ) from error
    spans = [(int(start), int(end)) for start, end in generated[0]] if generated else []
    return rendered[0], spans


def _mark(text: str, marks: str) -> str:
    return marks[0] + text + marks[1]


def _spans(marked: str, marks: str) -> list[tuple[int, int]]:
    """Places between a pair of marks, in characters of the marked text."""
    return [(m.start() + 1, m.end() - 1) for m in re.finditer(f"{marks[0]}[^{marks[1]}]*{marks[1]}", marked)]


def _spans_with_end(marked: str, eos_token: str | None) -> list[tuple[int, int]]:
    """Assistant turns and, where it follows, the end-of-sequence token."""
    spans = []
    for start, end in _spans(marked, _ASSISTANT):
        follows = re.match(r"\s*" + re.escape(eos_token), marked[end + 1 :]) if eos_token else None
        spans.append((start, end + 1 + follows.end() if follows else end))
    return spans


def _unmarked(marked: str, span: tuple[int, int]) -> tuple[int, int]:
    start, end = (place - len(_MARKS.findall(marked[:place])) for place in span)
    return start, end


def _complete(marked: str, messages: list[dict[str, Any]]) -> bool:
    """Every marked text of the messages stands in the rendering, unchanged and once."""
    wanted = sorted(
        m for message in messages for m in re.findall("[\ufdd0-\ufdd5][^\ufdd0-\ufdd5]*", message["content"])
    )
    found = sorted(re.findall("[\ufdd0-\ufdd5][^\ufdd0-\ufdd5]*", marked))
    starts = {_ASSISTANT[0], _USER[0], _RETRIEVED[0]}
    return [w for w in wanted if w[0] in starts] == [f for f in found if f[0] in starts]
