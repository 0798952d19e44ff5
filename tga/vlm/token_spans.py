"""Rendered prompt -> tokens, labels and span masks, through the fast tokenizer's offset mapping.

`<image>` is expanded to the number of image tokens of a picture before tokenizing, so the ids go into the model as
they are. A token belongs to a span when their characters overlap: no magic offsets, no searching for token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tga.errors import UserError
from tga.vlm.lm_loss import IGNORED_LABEL
from tga.vlm.templates import Rendered


@dataclass(frozen=True)
class Encoded:
    """One prompt as tokens.

    Attributes:
        input_ids: `[tokens]` int64.
        labels: `[tokens]` int64, -100 outside the assistant's words.
        image_mask: `[tokens]` bool, True on image tokens.
        retrieved_mask: `[tokens]` bool, True on the retrieved text.
        images: number of pictures, each of `image_tokens` tokens.
    """

    input_ids: Tensor
    labels: Tensor
    image_mask: Tensor
    retrieved_mask: Tensor
    images: int


def encode(
    rendered: Rendered, tokenizer: PreTrainedTokenizerBase, *, image_tokens: int, image_token: str = "<image>"
) -> Encoded:
    """Tokens and masks of a rendered prompt.

    Args:
        rendered: from `tga.vlm.templates.render`; it spells out its special tokens, none are added.
        tokenizer: a fast tokenizer that knows `image_token` as one token.
        image_tokens: image tokens per picture, see `tga.vlm.image_tokens.check_image_tokens`.

    Raises:
        UserError: a slow tokenizer, or one that splits the image token.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "Span masks need a fast tokenizer, which knows the characters of each token",
            given=type(tokenizer).__name__,
            remedy="save the tokenizer with a tokenizer.json (AutoTokenizer.from_pretrained(..., use_fast=True))",
        )
    text, places = _expand_images(rendered.text, image_token, image_tokens)
    moved = _Shift(places, len(image_token) * (image_tokens - 1), len(image_token))
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    input_ids = torch.tensor(encoding["input_ids"], dtype=torch.long)
    offsets = torch.tensor(encoding["offset_mapping"], dtype=torch.long).reshape(-1, 2)
    image_mask = input_ids == tokenizer.convert_tokens_to_ids(image_token)
    if int(image_mask.sum()) != len(places) * image_tokens:
        raise UserError(
            f"The tokenizer does not keep {image_token} as one token",
            given=f"{int(image_mask.sum())} image tokens in the prompt",
            allowed=f"{len(places)} pictures x {image_tokens} tokens",
            remedy="add it as a special token, as model=llava_parts does",
        )
    spoken = overlapping(offsets, [moved.span(span) for span in rendered.assistant])
    retrieved = overlapping(offsets, [moved.span(rendered.retrieved)] if rendered.retrieved else [])
    return Encoded(
        input_ids=input_ids,
        labels=torch.where(spoken, input_ids, torch.full_like(input_ids, IGNORED_LABEL)),
        image_mask=image_mask,
        retrieved_mask=retrieved,
        images=len(places),
    )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Tensor, Tensor]:
    """Tokens of a text fed to the language model alone, and a mask of what is pooled.

    Returns:
        input_ids `[tokens]` int64, the beginning-of-sequence token first where the tokenizer has one; mask `[tokens]`
        bool, False on that token.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    mask = [False] * len(start) + [True] * len(ids)
    return torch.tensor(start + ids, dtype=torch.long), torch.tensor(mask, dtype=torch.bool)


@dataclass(frozen=True)
class _Shift:
    """Moves character places by what the expanded images before them added."""

    places: Sequence[int]
    added: int
    width: int

    def span(self, span: tuple[int, int]) -> tuple[int, int]:
        start, end = (place + self.added * sum(p + self.width <= place for p in self.places) for place in span)
        return start, end


def _expand_images(text: str, image_token: str, image_tokens: int) -> tuple[str, list[int]]:
    """The text with each image token repeated, and where they stood in the text given."""
    places, start = [], text.find(image_token)
    while start >= 0:
        places.append(start)
        start = text.find(image_token, start + len(image_token))
    return text.replace(image_token, image_token * image_tokens), places


def overlapping(offsets: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Which tokens share a character with one of the spans.

    Args:
        offsets: `[tokens, 2]`, first character of each token and the one after its last.
        spans: places in the same text, end exclusive.

    Returns:
        `[tokens]` bool.
    """
    mask = torch.zeros(offsets.shape[0], dtype=torch.bool)
    for start, end in spans:
        mask |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    return mask
