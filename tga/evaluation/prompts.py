"""From questions to what a model takes: prompts by template, pictures by the processor, padded batches.

A chat question goes through the chat template, with a picture or without, so that a text question reaches the language
model in the very form it was aligned in. A plain question is the prompt of the projector stage: the picture alone, or
the words alone. Tokens and image tokens are made exactly as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tga.errors import UserError
from tga.evaluation.questions import Question
from tga.vlm.families import Family, component
from tga.vlm.image_tokens import check_image_tokens
from tga.vlm.padding import pad_rows, padding_id
from tga.vlm.templates import render
from tga.vlm.token_spans import encode


@dataclass(frozen=True)
class PromptBatch:
    """Padded prompts: input_ids, attention_mask [batch, tokens] int64; pixel_values [pictures, 3, h, w] or None."""

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor | None


def prompt_rows(
    model: Any,
    processor: Any,
    family: Family,
    questions: Sequence[Question],
    *,
    chat_template: str,
    plain_template: str,
) -> list[list[int]]:
    """Token ids of each question's prompt, up to where the answer begins, image tokens expanded.

    Raises UserError for an unknown template, or where processor and vision tower disagree on the image tokens.
    """
    pictured = any(question.image is not None for question in questions)
    image_tokens = check_image_tokens(model, family, processor) if pictured else 1
    templates = {"chat": chat_template, "plain": plain_template}
    rows = []
    for question in questions:
        rendered = render(
            [("user", question.prompt)],
            template=templates[question.format],
            tokenizer=processor.tokenizer,
            image=question.image is not None,
            add_generation_prompt=True,
            image_token=processor.image_token,
        )
        encoded = encode(rendered, processor.tokenizer, image_tokens=image_tokens, image_token=processor.image_token)
        rows.append(encoded.input_ids.tolist())
    return rows


def prompt_batch(
    model: Any,
    processor: Any,
    family: Family,
    rows: Sequence[Sequence[int]],
    pictures: Sequence[Path],
    *,
    padding_side: str,
) -> PromptBatch:
    """Token rows and the pictures they stand for, in order, as tensors on the model's device.

    pictures: one per row, or none at all. Raises UserError for a picture that cannot be read.
    """
    ids, mask = pad_rows(rows, padding_id(processor.tokenizer), padding_side, model.device)
    if not pictures:
        return PromptBatch(ids, mask, None)
    images = [_open(picture) for picture in pictures]
    pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    dtype = next(component(model, family.vision_tower).parameters()).dtype
    return PromptBatch(ids, mask, pixels.to(model.device, dtype))


def _open(picture: Path) -> Image.Image:
    try:
        with Image.open(picture) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"a picture cannot be read ({error})", given=picture, remedy="replace or remove it") from error
