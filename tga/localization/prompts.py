"""Text prompts as padded batches, with a mask of the words that make them toxic.

A prompt is rendered and tokenised as in training and evaluation, up to where the answer begins. Toxic words are parts
of the user's message; a token belongs to them when their characters overlap. Padding stands on the left, so that the
last position is the last token of every prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tga.errors import UserError
from tga.vlm.padding import pad_rows, padding_id
from tga.vlm.plain_text import plain_text
from tga.vlm.templates import Rendered, render
from tga.vlm.token_spans import overlapping


@dataclass(frozen=True)
class TextPrompt:
    """A prompt in words: token ids and, token by token, whether it belongs to the toxic words."""

    id: str
    tokens: tuple[int, ...]
    toxic: tuple[bool, ...]


@dataclass(frozen=True)
class TextBatch:
    """Left-padded prompts: `input_ids`, `attention_mask` `[batch, tokens]` int64, `toxic` `[batch, tokens]` bool."""

    ids: tuple[str, ...]
    input_ids: Tensor
    attention_mask: Tensor
    toxic: Tensor


def text_prompt(
    tokenizer: PreTrainedTokenizerBase,
    identity: str,
    message: str,
    toxic: Sequence[str],
    *,
    template: str,
    image_token: str = "<image>",
) -> TextPrompt:
    """The prompt that asks `message` in words alone.

    Args:
        toxic: parts of the message; each counts wherever it stands as words of its own, or, if it never does,
            wherever it stands. Empty marks nothing.
        template: a name of `tga.vlm.templates`.

    Raises:
        UserError: an unknown template, or toxic words that are no part of the message.
    """
    message, toxic = plain_text(tokenizer, message), [plain_text(tokenizer, words) for words in toxic]
    rendered = render(
        [("user", message)],
        template=template,
        tokenizer=tokenizer,
        image=False,
        add_generation_prompt=True,
        image_token=image_token,
        setting="evaluation.chat_template",
    )
    encoding = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = torch.tensor(encoding["offset_mapping"], dtype=torch.long).reshape(-1, 2)
    spans = [span for words in toxic for span in _places(words, message)]
    start = _message_start(rendered, message)
    mask = overlapping(offsets, [(start + first, start + end) for first, end in spans])
    return TextPrompt(identity, tuple(encoding["input_ids"]), tuple(mask.tolist()))


def text_batches(
    prompts: Iterable[TextPrompt], *, batch_size: int, tokenizer: PreTrainedTokenizerBase, device: Any
) -> Iterator[TextBatch]:
    """The prompts in their order, `batch_size` at a time; none is kept."""
    source = iter(prompts)
    while chunk := list(islice(source, batch_size)):
        ids, mask = pad_rows([prompt.tokens for prompt in chunk], padding_id(tokenizer), "left", device)
        toxic, _ = pad_rows([[int(token) for token in prompt.toxic] for prompt in chunk], 0, "left", device)
        yield TextBatch(tuple(prompt.id for prompt in chunk), ids, mask, toxic.bool())


def _message_start(rendered: Rendered, message: str) -> int:
    """Where the user's message begins in the rendered text; it stands there unchanged and last."""
    return rendered.text.rindex(message)


def _places(words: str, message: str) -> list[tuple[int, int]]:
    """Characters of each occurrence of the words."""
    literal = re.escape(words)
    found = [m.span() for m in re.finditer(rf"(?<!\w){literal}(?!\w)", message)]
    found = found or [m.span() for m in re.finditer(literal, message)]
    if not words or not found:
        raise UserError(
            "Toxic words that are no part of their prompt",
            given=repr(words),
            allowed=message,
            remedy='correct "toxic" in the question file, or localization.toxic_tokens=message',
        )
    return found
