"""Tokens and masks: the right tokens in each span, the same ids as the processor, any text."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_llava, tiny_picture, tiny_tokenizer
from tga.errors import UserError
from tga.vlm.chat_templates import BUILT_IN, TEMPLATES
from tga.vlm.templates import render
from tga.vlm.token_spans import encode, encode_text

TURNS = [
    ("user", "<image>\nWhat is it?"),
    ("assistant", "Ein Bär \U0001f43b."),
    ("user", "Sure?"),
    ("assistant", "Yes"),
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("retrieved", [None, "naïve café"])
def test_each_span_decodes_to_its_text(template: str, retrieved: str | None) -> None:
    tokenizer = tiny_tokenizer()
    rendered = render(TURNS, template=template, tokenizer=tokenizer, image=True, retrieved=retrieved)
    encoded = encode(rendered, tokenizer, image_tokens=4)
    spoken = tokenizer.decode(encoded.labels[encoded.labels != -100])
    assert spoken.replace(" ", "") == "EinBär\U0001f43b.</s>Yes</s>"
    assert tokenizer.decode(encoded.input_ids[encoded.retrieved_mask]).strip() == (retrieved or "")
    assert int(encoded.image_mask.sum()) == 4 and encoded.images == 1
    assert not (encoded.image_mask & (encoded.retrieved_mask | (encoded.labels != -100))).any()
    if retrieved and not (template in BUILT_IN and BUILT_IN[template].picture_first):
        assert encoded.retrieved_mask.nonzero().max() < encoded.image_mask.nonzero().min()


def test_ids_equal_those_of_the_processor() -> None:
    _, processor = tiny_llava()
    rendered = render(TURNS, template="vicuna_v1", tokenizer=processor.tokenizer, image=True)
    expected = processor(
        images=[tiny_picture()], text=rendered.text, return_tensors="pt", add_special_tokens=False
    ).input_ids[0]
    assert encode(rendered, processor.tokenizer, image_tokens=4).input_ids.tolist() == expected.tolist()


def test_two_images_in_a_turn() -> None:
    tokenizer = tiny_tokenizer()
    turns = [("user", "Compare <image> with <image> now."), ("assistant", "Equal.")]
    encoded = encode(
        render(turns, template="tokenizer", tokenizer=tokenizer, image=True, retrieved="x"), tokenizer, image_tokens=3
    )
    assert encoded.images == 2 and int(encoded.image_mask.sum()) == 6
    assert tokenizer.decode(encoded.labels[encoded.labels != -100]).strip() == "Equal.</s>"


def test_text_only_has_labels_and_no_image() -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode(
        render(TURNS[2:], template="vicuna_v1", tokenizer=tokenizer, image=False), tokenizer, image_tokens=4
    )
    assert encoded.images == 0 and not encoded.image_mask.any()
    assert tokenizer.decode(encoded.labels[encoded.labels != -100]).strip() == "Yes</s>"


def test_a_caption_is_pooled_without_its_beginning_token() -> None:
    tokenizer = tiny_tokenizer()
    ids, mask = encode_text(tokenizer, "A dog")
    assert ids.tolist() == tokenizer("A dog").input_ids
    assert mask.tolist() == [False] + [True] * (len(ids) - 1)
    assert tokenizer.decode(ids[mask]) == "A dog"
    empty_ids, empty_mask = encode_text(tokenizer, "")
    assert empty_ids.tolist() == [0] and empty_mask.dtype == torch.bool and not empty_mask.any()


def test_a_tokenizer_that_splits_the_image_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    rendered = render(TURNS, template="plain", tokenizer=tokenizer, image=True, image_token="<image>")
    with pytest.raises(UserError, match="does not keep <picture> as one token"):
        encode(
            type(rendered)(rendered.text.replace("<image>", "<picture>"), (), None),
            tokenizer,
            image_tokens=4,
            image_token="<picture>",
        )
