"""The chat template of an exported model: `apply_chat_template` shall give the prompts that it was trained on.

A template of the tokenizer may know texts only, and the built-in ones do; users of a vision-language model hand over
messages whose content is a list of pictures and texts. A few lines in front turn such lists into texts, by the rule
of `tga.vlm.templates.render`: a single picture comes first in the user's turn, on a line of its own, several stay
where they are.
"""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from tga.export.processor import puts_picture_first
from tga.vlm.chat_templates import BUILT_IN, PLAIN
from tga.vlm.pictures import Pictures
from tga.vlm.tokenizer_settings import adds_special_tokens

_PROBE = "a probe of the template"
# flat.whole: the message with its pictures where they stand; flat.words: without them. The loop over
# message['content'] is what vLLM tells a template by that takes lists.
_LISTS_TO_TEXTS = (
    "{% set flat = namespace(messages=[], whole='', words='', pictures=0, all=0) %}{% for message in messages %}"
    "{% set flat.whole = '' %}{% set flat.words = '' %}{% set flat.pictures = 0 %}"
    "{% if message['content'] is string %}"
    "{% set pieces = message['content'].split(image_text) if message['role'] == 'user' else [message['content']] %}"
    "{% set flat.whole = pieces | join(picture) %}{% set flat.words = pieces | join('') %}"
    "{% set flat.pictures = pieces | length - 1 %}"
    "{% elif message['content'] %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or part['type'] == 'image_url' %}"
    "{% set flat.whole = flat.whole + picture %}{% set flat.pictures = flat.pictures + 1 %}"
    "{% elif part['type'] == 'text' %}"
    "{% set flat.whole = flat.whole + part['text'] %}{% set flat.words = flat.words + part['text'] %}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' and flat.pictures == 1 %}{% set flat.words = flat.words | trim %}"
    "{% set flat.whole = picture + (line_end + flat.words if flat.words else '') %}{% endif %}"
    "{% set flat.all = flat.all + flat.pictures %}{% set content = CONTENT %}"
    "{% if content == message['content'] or not message['content'] %}"
    "{% set flat.messages = flat.messages + [message] %}"
    "{% else %}{% set flat.messages = flat.messages + [{'role': message['role'], 'content': content}] %}{% endif %}"
    "{% endfor %}{% set messages = flat.messages %}"
)
_PICTURES_FIRST = "{{ image_text * flat.all }}"
_BOS = "{{ bos_token }}"
_AS_TEXT, _AS_LIST = "flat.whole", "[{'type': 'text', 'text': flat.whole}]"


def exported_chat_template(processor: Any, trained_with: str | None) -> str | None:
    """The chat template for a processor that is saved; None where none is known.

    Args:
        processor: of a supported family.
        trained_with: the name of the template of the training (`tga.vlm.chat_templates.TEMPLATES`); a format of
            conversations goes before the processor's own, the picture-and-caption format `plain` does not.
    """
    pictures = Pictures(processor)
    if trained_with in BUILT_IN and BUILT_IN[trained_with].jinja != PLAIN:
        built_in = BUILT_IN[trained_with]
        if not built_in.picture_first:
            return _reading_lists(built_in.jinja, pictures)
        if not puts_picture_first(processor):
            return _reading_lists(_PICTURES_FIRST + built_in.jinja, pictures, shown=False)
        # Its tokenizer adds the token itself, as this processor is given texts of the user's own.
        jinja = built_in.jinja.removeprefix(_BOS) if adds_special_tokens(processor.tokenizer) else built_in.jinja
        return _reading_lists(jinja, pictures, shown=False)
    own = processor.chat_template or processor.tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if own is None or _knows_pictures(own, pictures):
        return own
    return _reading_lists(own, pictures, content=_AS_TEXT if _takes_texts(own, pictures) else _AS_LIST)


def _reading_lists(template: str, pictures: Pictures, *, shown: bool = True, content: str = _AS_TEXT) -> str:
    """`template` behind the lines that give it texts.

    shown: pictures stand in the texts; otherwise they come before everything.
    content: what the template takes as a message's content.
    """
    names = {"image_text": pictures.text, "picture": pictures.text if shown else "", "line_end": "\n" if shown else ""}
    constants = "".join(f"{{% set {name} = {value!r} %}}" for name, value in names.items())
    return constants + _LISTS_TO_TEXTS.replace("CONTENT", content) + template


def _knows_pictures(template: str, pictures: Pictures) -> bool:
    """Whether the template renders a content of a picture and a text, both of them."""
    rendered = _rendered(template, [{"type": "image"}, {"type": "text", "text": _PROBE}], pictures)
    return pictures.token in rendered and f"'{_PROBE}'" not in rendered and _PROBE in rendered


def _takes_texts(template: str, pictures: Pictures) -> bool:
    """Whether a message's content may be a text: not so where the template renders a list of a text alone."""
    as_list = _rendered(template, [{"type": "text", "text": _PROBE}], pictures)
    return _PROBE in _rendered(template, _PROBE, pictures) or _PROBE not in as_list


def _rendered(template: str, content: Any, pictures: Pictures) -> str:
    """A user's message of this content in the template; "" where it refuses it."""
    specials = pictures.processor.tokenizer.special_tokens_map
    try:
        rendered, _ = render_jinja_template(
            conversations=[[{"role": "user", "content": content}]], chat_template=template, **specials
        )
    except (TemplateError, TypeError):
        return ""
    return str(rendered[0])
