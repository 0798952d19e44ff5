"""Conversation -> prompt text, with the places of the assistant's words and of the retrieved text in it.

The templates are those of `tga.vlm.chat_templates`, or the chat template that the tokenizer brings ("tokenizer"). All
are rendered by the same Jinja code.

Places are found without searching for text: each turn goes into the template between two Unicode noncharacters,
which are read off and removed after rendering. That works for any template that repeats the text unchanged, also
those that do not mark the assistant's turn with `{% generation %}`. Retrieved text stands before the image, except in
a format whose pictures come before everything.

The control tokens of a prompt are those of its template: they are taken out of the texts that go into it
(`tga.vlm.plain_text`), the system's too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from tga.errors import UserError
from tga.vlm.chat_templates import BUILT_IN, OF_THE_TOKENIZER, TEMPLATES, ChatTemplate
from tga.vlm.plain_text import plain_text

ROLES = ("system", "user", "assistant")

_ASSISTANT, _USER, _RETRIEVED, _SYSTEM = "\ufdd0\ufdd1", "\ufdd2\ufdd3", "\ufdd4\ufdd5", "\ufdd6\ufdd7"
_OF_A_ROLE = {"user": _USER, "assistant": _ASSISTANT, "system": _SYSTEM}
_MARKS = re.compile("[\ufdd0-\ufdd7]")


@dataclass(frozen=True)
class Rendered:
    """A prompt and its spans, in characters of `text`, end exclusive.

    Attributes:
        text: the whole prompt, special tokens spelled out, one `<image>` per picture.
        assistant: what the model must learn to say, turn by turn, end-of-turn token included.
        retrieved: the retrieved text, or None where there is none.
        texts: what is not of the template: the words of the turns and the retrieved text, in the order of the prompt.
    """

    text: str
    assistant: tuple[tuple[int, int], ...]
    retrieved: tuple[int, int] | None
    texts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Message:
    """One turn; a part is a marked text, or None where a picture stands."""

    role: str
    parts: tuple[str | None, ...]

    def as_text(self, picture: str) -> dict[str, Any]:
        """Pictures as text; a single one and the retrieved text end their line."""
        alone = self.parts.count(None) == 1
        pieces = []
        for number, part in enumerate(self.parts):
            ends_line = number + 1 < len(self.parts) and ((part is None and alone) or _is_retrieved(part))
            pieces.append((picture if part is None else part) + ("\n" if ends_line else ""))
        return {"role": self.role, "content": "".join(pieces)}

    def as_list(self) -> dict[str, Any]:
        """Pictures as parts of their own, as the templates of vision-language models read them."""
        content: list[dict[str, str]] = []
        for part in self.parts:
            text = None if part is None else part + ("\n" if _is_retrieved(part) else "")
            content.append({"type": "image"} if text is None else {"type": "text", "text": text})
        return {"role": self.role, "content": content}


def render(
    turns: Sequence[tuple[str, str]],
    *,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    image: bool,
    retrieved: str | None = None,
    add_generation_prompt: bool = False,
    image_token: str = "<image>",
    picture: str | None = None,
    setting: str = "data.template",
) -> Rendered:
    """Render a conversation.

    Args:
        turns: (role, text) pairs, roles "system", "user", "assistant". Where a user turn holds one image token, it
            moves to the turn's beginning, as LLaVA does; where `image` is True and no turn holds one, it is added
            to the first user turn.
        template: a name of `tga.vlm.chat_templates.TEMPLATES`.
        image: the conversation has a picture.
        retrieved: text to put before the image (or before the first user turn of a conversation without one).
        add_generation_prompt: end where the model's answer begins.
        picture: what stands for a picture in the prompt where that is more than `image_token`, which is within it.
        setting: the setting that names the template, for errors.

    Raises:
        UserError: an unknown template or role, an image token without a picture, or a chat template that refuses the
            conversation or alters its text.
    """
    chat = _chat_template(template, tokenizer, setting)
    picture = picture or image_token
    messages = _messages(turns, chat, image, retrieved, image_token, tokenizer)
    pictures = sum(message.parts.count(None) for message in messages)
    if chat.picture_first:
        messages = [_Message(m.role, tuple(part for part in m.parts if part is not None)) for m in messages]
    expected = 0 if chat.picture_first else pictures
    problem = UserError(
        "The chat template drops or alters the text of a turn, so its tokens cannot be told apart",
        given=f"template {template!r}, turns of {', '.join(dict.fromkeys(message.role for message in messages))}",
        allowed="a template that repeats each turn unchanged",
        remedy=f"{setting}=vicuna_v1",
    )
    refusals: list[UserError] = []
    rendered = False
    marked = ""
    generated: list[tuple[int, int]] = []
    for content in _forms(messages, template, picture, bool(expected)):
        try:
            marked, generated = _render_jinja(content, chat.jinja, tokenizer, add_generation_prompt, setting)
        except UserError as refusal:  # it may take the next form
            refusals.append(refusal)
            continue
        rendered = True
        if _complete(marked, messages) and marked.count(image_token) == expected and _in_order(marked, image_token):
            break
    else:
        raise problem if rendered else refusals[-1]
    spans = generated or _spans_with_end(marked, tokenizer)
    places = _spans(marked, _RETRIEVED)
    head = picture * pictures if chat.picture_first else ""
    return Rendered(
        text=head + _MARKS.sub("", marked),
        assistant=tuple(_unmarked(marked, span, len(head)) for span in spans),
        retrieved=_unmarked(marked, places[0], len(head)) if places else None,
        texts=tuple(
            _unmarked(marked, span, len(head))
            for span in sorted(span for marks in (*_OF_A_ROLE.values(), _RETRIEVED) for span in _spans(marked, marks))
        ),
    )


def _forms(messages: Sequence[_Message], template: str, picture: str, pictured: bool) -> Iterator[list[dict[str, Any]]]:
    """The forms in which a template may want the messages, the most telling first.

    A tokenizer's template that knows pictures is given them as parts, so that it writes them its own way; one that
    does not gets texts.
    """
    texts = [message.as_text(picture) for message in messages]
    if template == OF_THE_TOKENIZER and pictured:
        yield [message.as_list() for message in messages]
    yield texts
    if template == OF_THE_TOKENIZER:
        yield [{**text, "content": [{"type": "text", "text": text["content"]}]} for text in texts]


def _messages(
    turns: Sequence[tuple[str, str]],
    chat: ChatTemplate,
    image: bool,
    retrieved: str | None,
    image_token: str,
    tokenizer: PreTrainedTokenizerBase,
) -> list[_Message]:
    _check_turns(turns, image, image_token)
    users = [i for i, (role, _) in enumerate(turns) if role == "user"]
    if (image or retrieved) and not users:
        given = [role for role, _ in turns]
        raise UserError("A picture or retrieved text needs a user turn", given=given, remedy="add one")
    with_image = [i for i in users if image_token in turns[i][1]] or (users[:1] if image else [])
    holder = (with_image or users or [-1])[0]
    messages = []
    for i, (role, text) in enumerate(turns):
        words = _parts(text, image_token, words=chat.words) if i in with_image else [text]
        parts = [word if word is None else _mark(plain_text(tokenizer, word), _OF_A_ROLE[role]) for word in words]
        if retrieved and i == holder:
            # Without our marks first: they would part a control token, and be taken out of the prompt later.
            parts = [_mark(plain_text(tokenizer, _MARKS.sub("", retrieved)), _RETRIEVED), *parts]
        messages.append(_Message(role, tuple(parts)))
    return messages


def _check_turns(turns: Sequence[tuple[str, str]], image: bool, image_token: str) -> None:
    for role, text in turns:
        if role not in ROLES:
            raise UserError("Unknown role of a turn", given=role, allowed=", ".join(ROLES), remedy="rename it")
        if image_token in text and (role != "user" or not image):
            where = f"in a turn of the {role}" if role != "user" else "in a conversation without a picture"
            raise UserError(f"The image token {image_token} stands {where}", given=text[:200], remedy="take it out")
        if _MARKS.search(text):
            problem = "A turn holds a Unicode noncharacter (U+FDD0 to U+FDD7)"
            raise UserError(problem, given=ascii(text[:200]), remedy="take it out")


def _parts(text: str, image_token: str, words: bool) -> list[str | None]:
    """A user's turn with pictures: a single one comes first, several stay where they are."""
    count = text.count(image_token)
    if not words:
        return [None] * max(count, 1)
    if count <= 1:
        rest = text.replace(image_token, "").strip()
        return [None, rest] if rest else [None]
    parts: list[str | None] = []
    for number, piece in enumerate(text.split(image_token)):
        parts += [None] if number else []
        parts += [piece] if piece else []
    return parts


def _chat_template(template: str, tokenizer: PreTrainedTokenizerBase, setting: str) -> ChatTemplate:
    if template in BUILT_IN:
        return BUILT_IN[template]
    if template == OF_THE_TOKENIZER:
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        if own:
            return ChatTemplate(str(own))
        raise UserError(
            "The tokenizer has no chat template",
            given=tokenizer.name_or_path or type(tokenizer).__name__,
            allowed=", ".join(BUILT_IN),
            remedy=f"{setting}=vicuna_v1",
        )
    raise UserError("Unknown template", given=template, allowed=", ".join(TEMPLATES), remedy=f"{setting}=...")


@functools.lru_cache(maxsize=16)
def _marks_generation(chat_template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", chat_template) is not None


def _render_jinja(
    messages: list[dict[str, Any]],
    chat_template: str,
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool,
    setting: str,
) -> tuple[str, list[tuple[int, int]]]:
    """Marked text and, where the template says them, the assistant's spans in it."""
    marks_generation = _marks_generation(chat_template)
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
            remedy=f"{setting}=vicuna_v1",
        ) from error
    spans = [(int(start), int(end)) for start, end in generated[0]] if generated else []
    return rendered[0], spans


def _mark(text: str, marks: str) -> str:
    """An empty system text stays bare: templates ask whether there is one."""
    return text if marks == _SYSTEM and not text else f"{marks[0]}{text}{marks[1]}"


def _is_retrieved(part: str | None) -> bool:
    return part is not None and part.startswith(_RETRIEVED[0])


def _spans(marked: str, marks: str) -> list[tuple[int, int]]:
    """Places between a pair of marks, in characters of the marked text."""
    return [(m.start() + 1, m.end() - 1) for m in re.finditer(f"{marks[0]}[^{marks[1]}]*{marks[1]}", marked)]


def _spans_with_end(marked: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Assistant turns and the special token that ends each, where one follows."""
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = sorted((known | {tokenizer.eos_token or ""}) - {"", tokenizer.bos_token}, key=len, reverse=True)
    pattern = re.compile(r"\s*(?:" + "|".join(map(re.escape, ends)) + ")") if ends else None
    spans = []
    for start, end in _spans(marked, _ASSISTANT):
        follows = pattern.match(marked, end + 1) if pattern else None
        spans.append((start, follows.end() if follows else end))
    return spans


def _unmarked(marked: str, span: tuple[int, int], shift: int) -> tuple[int, int]:
    start, end = (place - len(_MARKS.findall(marked[:place])) + shift for place in span)
    return start, end


def _complete(marked: str, messages: Sequence[_Message]) -> bool:
    """Every marked text of the messages stands in the rendering, unchanged and once."""
    texts = "".join(part for message in messages for part in message.parts if part is not None)
    return sorted(_marked_texts(marked)) == sorted(_marked_texts(texts))


def _marked_texts(text: str) -> list[str]:
    """What stands between marks, with the opening one."""
    pairs = (*_OF_A_ROLE.values(), _RETRIEVED)
    return [found for pair in pairs for found in re.findall(f"{pair[0]}[^{pair[1]}]*", text)]


def _in_order(marked: str, image_token: str) -> bool:
    """The retrieved text, where there is one, stands before the first picture."""
    place, first = marked.find(_RETRIEVED[0]), marked.find(image_token)
    return place < 0 or first < 0 or place < first
