"""Batches: which tokens are labels, image, retrieved text and caption, checked by decoding them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaProcessor

from tests.tiny import tiny_llava, tiny_picture, tiny_tokenizer
from tga.data.collate import Batch, Collator
from tga.data.sample import Sample, Turn
from tga.errors import UserError


def samples(directory: Path) -> list[Sample]:
    """With a picture and a neighbour; text only; with a picture, without caption or neighbour."""
    tiny_picture(1).save(directory / "1.png")
    tiny_picture(2, size=30).save(directory / "2.png")
    caption = (Turn("user", "Describe."), Turn("assistant", "A red car."))
    text = (Turn("user", "How many?"), Turn("assistant", "Two cats."))
    return [
        Sample("a", (directory / "1.png",), caption, "A red car.", ("A blue chair.", "A cup.")),
        Sample("b", (), text, None),
        Sample("c", (directory / "2.png",), caption, None),
    ]


def collate(directory: Path, **options: Any) -> Batch:
    collator = Collator(tiny_llava()[1], options.pop("template", "plain"), image_tokens=4, max_length=200, **options)
    return collator(samples(directory))


def decoded(ids: Tensor, mask: Tensor) -> list[str]:
    """The text under a mask, row by row."""
    return [tiny_tokenizer().decode(row[chosen]).strip() for row, chosen in zip(ids, mask.bool(), strict=True)]


def test_retrieved_text_in_the_prompt_stands_before_the_image(tmp_path: Path) -> None:
    batch = collate(tmp_path, retrieved="prompt")
    assert batch.ids == ["a", "b", "c"] and batch.retrieved_ids is None
    assert batch.image_mask.sum(1).tolist() == [4, 0, 4] and batch.image_mask.dtype == torch.bool
    assert decoded(batch.input_ids, batch.retrieved_mask) == ["A blue chair.\nA cup.", "", ""]
    assert batch.retrieved_mask[0].nonzero().max() < batch.image_mask[0].nonzero().min()
    assert decoded(batch.input_ids, batch.labels != -100) == ["A red car.</s>", "Two cats.</s>", "A red car.</s>"]
    assert torch.equal(batch.labels[batch.labels != -100], batch.input_ids[batch.labels != -100])
    assert (batch.input_ids[batch.attention_mask == 0] == tiny_tokenizer().pad_token_id).all()
    assert batch.attention_mask.sum(1).tolist() == [len(row[row != 2]) for row in batch.input_ids]


def test_retrieved_text_for_the_loss_is_apart(tmp_path: Path) -> None:
    batch = collate(tmp_path, retrieved="loss")
    assert not batch.retrieved_mask.any()
    assert batch.retrieved_ids is not None and batch.retrieved_text_mask is not None
    assert decoded(batch.retrieved_ids, batch.retrieved_text_mask) == ["A blue chair.\nA cup.", "", ""]
    assert decoded(batch.caption_ids, batch.caption_mask) == ["A red car.", "", ""]
    assert batch.caption_ids[0, 0] == tiny_tokenizer().bos_token_id and not batch.caption_mask[0, 0]
    assert batch.caption_attention_mask.sum(1).min() == 1


def test_no_retrieved_text(tmp_path: Path) -> None:
    batch = collate(tmp_path, retrieved="none")
    assert not batch.retrieved_mask.any() and batch.retrieved_ids is None


def test_the_chat_templates_label_the_answers_alone(tmp_path: Path) -> None:
    for template in ("vicuna_v1", "tokenizer"):
        batch = collate(tmp_path, retrieved="none", template=template)
        assert decoded(batch.input_ids, batch.labels != -100) == ["A red car.</s>", "Two cats.</s>", "A red car.</s>"]


def test_pictures_are_those_of_the_image_processor_one_by_one(tmp_path: Path) -> None:
    batch = collate(tmp_path, retrieved="none")
    processor = tiny_llava()[1].image_processor
    single = [processor(images=tiny_picture(*a), return_tensors="pt")["pixel_values"] for a in ((1, 40), (2, 30))]
    assert batch.pixel_values is not None
    torch.testing.assert_close(batch.pixel_values, torch.cat(single))


def test_576_image_tokens_of_clip_336() -> None:
    size = {"image_processor": CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})}
    processor = LlavaProcessor(
        tokenizer=tiny_tokenizer(), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, **size,
    )  # fmt: skip
    written = processor(images=[tiny_picture(0, size=50)], text="<image>", return_tensors="pt")
    assert int((written["input_ids"] == processor.image_token_id).sum()) == 576
    collator = Collator(processor, "plain", image_tokens=576, retrieved="none", max_length=2048)
    sample = Sample("a", (Path("a.png"),), (Turn("user", "Describe."), Turn("assistant", "A car.")), "A car.")
    (prompt,) = collator._prompts([sample], [[(50, 50)]])
    assert int(prompt.image_mask.sum()) == 576
    assert prompt.image_mask.nonzero().flatten().tolist() == list(range(1, 577))  # behind the first token, <s>


def test_what_is_too_long_is_cut_but_never_the_image(tmp_path: Path) -> None:
    tiny = tiny_llava()[1]
    cut = Collator(tiny, "plain", image_tokens=4, retrieved="none", max_length=7)(samples(tmp_path))
    assert cut.input_ids.shape[1] == 7 and cut.caption_ids.shape[1] <= 7
    with pytest.raises(UserError, match="sample a: .* the image ends at 5.*first 4"):
        Collator(tiny, "plain", image_tokens=4, retrieved="none", max_length=4)(samples(tmp_path))


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    found = samples(tmp_path)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot be read.*1\.png of sample a"):
        Collator(tiny_llava()[1], "plain", image_tokens=4, retrieved="none", max_length=99)(found)


@pytest.mark.parametrize("template", ["plain", "vicuna_v1", "tokenizer"])
@pytest.mark.parametrize(
    ("pictures", "question", "answer", "said"),
    [
        (1, "<image>\n<image>\nDescribe.", "A car.", "1 pictures, 2 <image> asked, 0 answered"),
        (1, "Describe.", "An <image>.", "1 pictures, 0 <image> asked, 1 answered"),
        (0, "<image>\nDescribe.", "A car.", "0 pictures, 1 <image> asked"),
        (2, "<image>\nDescribe.", "A car.", "2 pictures, 1 <image> asked"),
    ],
)
def test_markers_that_do_not_fit_the_pictures_are_refused_by_id(
    pictures: int, question: str, answer: str, said: str, template: str, tmp_path: Path
) -> None:
    images = tuple(tmp_path / f"{i}.png" for i in range(pictures))
    wrong = Sample("r7", images, (Turn("user", question), Turn("assistant", answer)), "A car.")
    collator = Collator(tiny_llava()[1], template, image_tokens=4, retrieved="none", max_length=99)
    with pytest.raises(UserError, match=f"sample r7: {said}"):
        collator([wrong])


def test_one_marker_for_one_picture_is_no_other_prompt_than_none(tmp_path: Path) -> None:
    tiny_picture(1).save(tmp_path / "1.png")
    collator = Collator(tiny_llava()[1], "vicuna_v1", image_tokens=4, retrieved="none", max_length=400)
    batches = [
        collator([Sample("a", (tmp_path / "1.png",), (Turn("user", text), Turn("assistant", "A car.")), "A car.")])
        for text in ("What is it?", "What is it?\n<image>")
    ]
    assert torch.equal(batches[0].input_ids, batches[1].input_ids) and int(batches[0].image_mask.sum()) == 4


def test_an_unknown_use_of_retrieved_text_is_refused() -> None:
    with pytest.raises(UserError, match="elsewhere.*prompt, loss, none"):
        Collator(tiny_llava()[1], "plain", image_tokens=4, retrieved="elsewhere", max_length=9)


def test_a_batch_of_text_alone_gets_a_picture_where_asked(tmp_path: Path) -> None:
    collator = Collator(tiny_llava()[1], "vicuna_v1", image_tokens=4, retrieved="loss", max_length=200)
    first, text, third = samples(tmp_path)
    filled = collator.with_fillers()([text])
    assert filled.ids == ["b", ""] and filled.image_mask.sum(1).tolist() == [0, 4]
    assert filled.pixel_values is not None and len(filled.pixel_values) == 1
    assert (filled.labels[1] == -100).all() and not filled.caption_mask[1].any()
    assert filled.retrieved_text_mask is not None and not filled.retrieved_text_mask[1].any()
    plain = collator([text])
    assert torch.equal(filled.labels[0][: plain.labels.shape[1]], plain.labels[0]) and plain.pixel_values is None
    assert collator.with_fillers()([first, text, third]).ids == ["a", "b", "c"]


def test_a_batch_moves_as_a_whole(tmp_path: Path) -> None:
    moved = collate(tmp_path, retrieved="loss").to("meta")
    assert moved.input_ids.is_meta and moved.ids == ["a", "b", "c"]
    assert moved.pixel_values is not None and moved.pixel_values.is_meta
