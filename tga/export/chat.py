"""The chat template of an exported model: `apply_chat_template` shall give the prompts that it was trained on.

A template of the tokenizer may know texts only, and the built-in ones do; users of a vision-language model hand over
messages whose content is a list of pictures and texts. A few lines in front turn such lists into texts.
"""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from tga.vlm.chat_templates import BUILT_IN, PLAIN
from tga.vlm.pictures import Pictures

_PROBE = "a probe of the template"
_LISTS_TO_TEXTS = (
    "{% set flat = namespace(messages=[], text='') %}{% for message in messages %}"
    "{% if message['content'] is string %}{% set flat.text = message['content'] %}"
    "{% else %}{% set flat.text = '' %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set flat.text = flat.text + PICTURE %}"
    "{% elif part['type'] == 'text' %}{% set flat.text = flat.text + part['text'] %}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% set flat.messages = flat.messages + [{'role': message['role'], 'content': flat.text}] %}"
    "{% endfor %}{% set messages = flat.messages %}"
)


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
        return _reading_lists(built_in.jinja, "" if built_in.picture_first else pictures.text + "\n")
    own = processor.chat_template or processor.tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if own is None or _knows_pictures(own, pictures):
        return own
    return _reading_lists(own, pictures.text + "\n")


def _reading_lists(template: str, picture: str) -> str:
    return _LISTS_TO_TEXTS.replace("PICTURE", repr(picture)) + template


def _knows_pictures(template: str, pictures: Pictures) -> bool:
    """Whether the template renders a content of a picture and a text, both of them."""
    content = [{"type": "image"}, {"type": "text", "text": _PROBE}]
    specials = pictures.processor.tokenizer.special_tokens_map
    try:
        rendered, _ = render_jinja_template(
            conversations=[[{"role": "user", "content": content}]], chat_template=template, **specials
        )
    except (TemplateError, TypeError):
        return False
    return pictures.token in rendered[0] and f"'{_PROBE}'" not in rendered[0] and _PROBE in rendered[0]
