"""Rendered prompt -> tokens, labels and span masks, through the fast tokenizer's offset mapping.

The one image token of each picture is replaced by the tokens that the processor writes for it, so the ids go into the
model as they are. A token belongs to a span when their characters overlap: no magic offsets, no searching for ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tga.errors import UserError
from tga.vlm.lm_loss import IGNORED_LABEL
from tga.vlm.plain_text import control_places, plain_texts
from tga.vlm.templates import Rendered


@dataclass(frozen=True)
class Encoded:
    """One prompt as tokens.

    Attributes:
        input_ids: `[tokens]` int64.
        labels: `[tokens]` int64, -100 outside the assistant's words.
        image_mask: `[tokens]` bool, True on image tokens.
        retrieved_mask: `[tokens]` bool, True on the retrieved text.
        images: number of pictures.
    """

    input_ids: Tensor
    labels: Tensor
    image_mask: Tensor
    retrieved_mask: Tensor
    images: int


def encode(
    rendered: Rendered,
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_tokens: int | Sequence[Sequence[int]],
    image_token: str = "<image>",
) -> Encoded:
    """:func:`encode_prompts` of one."""
    return encode_prompts([rendered], tokenizer, image_tokens=[image_tokens], image_token=image_token)[0]


def encode_prompts(
    rendered: Sequence[Rendered],
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_tokens: Sequence[int | Sequence[Sequence[int]]],
    image_token: str = "<image>",
) -> list[Encoded]:
    """Tokens and masks of rendered prompts; one call of the tokenizer.

    Args:
        rendered: from `tga.vlm.templates.render`; they spell out their special tokens, none are added.
        tokenizer: a fast tokenizer that knows `image_token` as one token.
        image_tokens: for each prompt the ids that each of its pictures becomes, in order
            (`tga.vlm.pictures.Pictures.tokens`), or a number: so many image tokens for every picture.

    Raises:
        UserError: a slow tokenizer, one that splits the image token, another number of pictures than expected, or a
            control token within what is not of the template.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "Span masks need a fast tokenizer, which knows the characters of each token",
            given=type(tokenizer).__name__,
            remedy="save the tokenizer with a tokenizer.json (AutoTokenizer.from_pretrained(..., use_fast=True))",
        )
    if not rendered:
        return []
    image_id = tokenizer.convert_tokens_to_ids(image_token)
    encoding = tokenizer([prompt.text for prompt in rendered], add_special_tokens=False, return_offsets_mapping=True)
    encoded = []
    for prompt, ids, places, wanted in zip(
        rendered, encoding["input_ids"], encoding["offset_mapping"], image_tokens, strict=True
    ):
        _refuse_control_tokens(prompt, control_places(tokenizer, prompt.text, ids, places))
        pictures, found = prompt.text.count(image_token), ids.count(image_id)
        expansions = [[image_id] * wanted] * pictures if isinstance(wanted, int) else wanted
        if found != pictures or len(expansions) != pictures:
            raise UserError(
                f"The tokenizer does not keep {image_token} as one token, or pictures and text do not match",
                given=f"{found} image tokens for {len(expansions)} pictures",
                allowed=f"{pictures}, as many as the text has",
                remedy="add it as a special token, as model=llava_parts does",
            )
        encoded.append(_with_masks(prompt, *_expanded(ids, places, image_id, expansions), image_id, pictures))
    return encoded


def _refuse_control_tokens(prompt: Rendered, controls: Sequence[tuple[int, int]]) -> None:
    """Raise a UserError where a control token reaches into a text: `render` took out what the text alone holds."""
    for start, end in controls:
        if any(start < last and end > first for first, last in prompt.texts):
            raise UserError(
                "A text and what the chat template puts beside it make a control token",
                given=ascii(prompt.text[max(0, start - 40) : end + 40]),
                allowed="control tokens of the template alone",
                remedy="take it out of the text, or choose another template: data.template=vicuna_v1",
            )


def _with_masks(
    prompt: Rendered, ids: Sequence[int], places: Sequence[tuple[int, int]], image_id: int, pictures: int
) -> Encoded:
    input_ids, offsets = torch.tensor(ids, dtype=torch.long), torch.tensor(places, dtype=torch.long).reshape(-1, 2)
    spoken = overlapping(offsets, prompt.assistant)
    return Encoded(
        input_ids=input_ids,
        labels=input_ids.masked_fill(~spoken, IGNORED_LABEL),
        image_mask=input_ids == image_id,
        retrieved_mask=overlapping(offsets, [prompt.retrieved] if prompt.retrieved else []),
        images=pictures,
    )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Tensor, Tensor]:
    """:func:`encode_texts` of one."""
    return encode_texts(tokenizer, [text])[0]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """Tokens of texts fed to the language model alone, and masks of what is pooled; one call of the tokenizer.

    Control tokens are taken out of the texts (`tga.vlm.plain_text`).

    Returns:
        For each text input_ids `[tokens]` int64, the beginning-of-sequence token first where the tokenizer has one;
        mask `[tokens]` bool, False on that token.
    """
    if not texts:
        return []
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [
        (
            torch.tensor(start + list(ids), dtype=torch.long),
            torch.tensor([False] * len(start) + [True] * len(ids), dtype=torch.bool),
        )
        for ids in tokenizer(plain_texts(tokenizer, texts), add_special_tokens=False)["input_ids"]
    ]


def _expanded(
    ids: Sequence[int], places: Sequence[tuple[int, int]], image_id: int, expansions: Sequence[Sequence[int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their characters, each image token replaced by the next expansion, which keeps its characters."""
    following = iter(expansions)
    new_ids: list[int] = []
    new_places: list[tuple[int, int]] = []
    for identity, place in zip(ids, places, strict=True):
        tokens = next(following) if identity == image_id else (identity,)
        new_ids.extend(tokens)
        new_places.extend([place] * len(tokens))
    return new_ids, new_places


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
