"""From questions to what a model takes: prompts by template, pictures by the processor, padded batches.

A chat question goes through the chat template, with a picture or without, so that a text question reaches the language
model in the very form it was aligned in. A plain question is the prompt of the projector stage: the picture alone, or
the words alone. Tokens and image tokens are made exactly as in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from retrieval_index.picture_files import opened, read_rgb, reason
from tga.errors import UserError
from tga.evaluation.questions import Question
from tga.vlm.families import Family, component
from tga.vlm.image_tokens import check_image_tokens
from tga.vlm.padding import pad_rows, padding_id
from tga.vlm.pictures import Pictures, to_model
from tga.vlm.plain_text import plain_text
from tga.vlm.templates import render
from tga.vlm.token_spans import encode


@dataclass(frozen=True)
class PromptBatch:
    """Padded prompts with their pictures.

    Attributes:
        input_ids, attention_mask: [batch, tokens] int64.
        pixel_values: in the layout of the family (LLaVA-1.5: [pictures, 3, h, w]), None without pictures.
        picture_inputs: what else the model's forward takes because of the pictures, by argument.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor | None
    picture_inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def model_inputs(self) -> dict[str, Tensor]:
        """What the model's forward takes, by argument."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.pixel_values is not None:
            inputs |= {"pixel_values": self.pixel_values, **self.picture_inputs}
        return inputs


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
    if pictured:
        check_image_tokens(model, family, processor)
    codec = Pictures(processor, family)
    templates = {"chat": chat_template, "plain": plain_template}
    rows = []
    for question in questions:
        rendered = render(
            [("user", _with_one_marker(question, codec, processor.tokenizer))],
            template=templates[question.format],
            tokenizer=processor.tokenizer,
            image=question.image is not None,
            add_generation_prompt=True,
            image_token=codec.token,
            picture=codec.text,
            setting=f"evaluation.{question.format}_template",
        )
        image_tokens = [] if question.image is None else [codec.tokens(_size(question.image) if codec.vary else None)]
        encoded = encode(rendered, processor.tokenizer, image_tokens=image_tokens, image_token=codec.token)
        rows.append(encoded.input_ids.tolist())
    return rows


def _with_one_marker(question: Question, codec: Pictures, tokenizer: Any) -> str:
    """The question's words; an image token in them says where the picture stands if there is one of each."""
    if question.image is not None and question.prompt.count(codec.token) == 1:
        return question.prompt
    return plain_text(tokenizer, question.prompt)


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
    codec = Pictures(processor, family)
    inputs = codec.inputs([_open(picture) for picture in pictures], rows) | codec.token_inputs(ids)
    dtype = next(component(model, family.vision_tower).parameters()).dtype
    moved = to_model(inputs, model.device, dtype)
    return PromptBatch(ids, mask, moved.pop("pixel_values"), moved)


def _size(picture: Path) -> tuple[int, int]:
    """Width and height, read from the file's head."""
    with _readable(picture), opened(picture) as image:
        return image.size


def _open(picture: Path) -> Image.Image:
    with _readable(picture):
        return read_rgb(picture)


@contextmanager
def _readable(picture: Path) -> Iterator[None]:
    """A picture that cannot be read as a UserError."""
    try:
        yield
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(
            f"a picture cannot be read ({reason(error)})", given=picture, remedy="replace or remove it"
        ) from error
