"""The exported processor in plain transformers: batches, and the ids of prompts by every way to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import processors
from transformers import AutoProcessor, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from tests.tiny import SPECIAL_TOKENS, tiny_image_processor, tiny_llava, tiny_picture, tiny_tokenizer
from tests.tiny_families import FAMILIES, TEMPLATE, made
from tga.data.collate import Collator
from tga.data.picture import GreyPicture
from tga.data.sample import Sample, Turn
from tga.export.card import ModelCard
from tga.export.chat import exported_chat_template
from tga.export.hf import export_hf
from tga.export.processor import save_processor
from tga.mini.tokenizer import llm_tokenizer
from tga.vlm.chat_templates import BUILT_IN
from tga.vlm.parts import add_image_token, llava_processor
from tga.vlm.templates import render
from tga.vlm.token_spans import encode_prompts
from tga.vlm.tokenizer_settings import adds_special_tokens, set_for_generation

CARD = ModelCard(name="tiny", base_llm="an-llm", base_vision_tower="a-tower", method="tga")
QUESTIONS = [
    "What is it?",
    "Describe the image in as many words as you can find, please. Is there a cup on the table?",
    "Why?",
    "How many cats sit on the blue chair?",
]
NEW_TOKENS = 8
CONVERSATIONS = [name for name, chat in BUILT_IN.items() if name != "plain" and not chat.picture_first]


def question(text: str, picture: Image.Image | None = None) -> list[dict[str, Any]]:
    shown = [{"type": "image", "image": picture}] if picture is not None else []
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "instructblip"])
def test_a_batch_is_answered_as_each_prompt_alone(name: str, tmp_path: Path) -> None:
    model, ours = made(name)
    export_hf(model, ours, tmp_path / "exported", CARD, trained_with=TEMPLATE[name])
    processor = AutoProcessor.from_pretrained(tmp_path / "exported")
    pictures = [tiny_picture(seed) for seed in range(len(QUESTIONS))]
    asked = [question(text, picture) for text, picture in zip(QUESTIONS, pictures, strict=True)]

    def answers(messages: list[Any]) -> list[list[int]]:
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )  # fmt: skip
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        return [until_end(row[inputs["input_ids"].shape[1] :].tolist()) for row in tokens]

    def until_end(row: list[int]) -> list[int]:
        end = processor.tokenizer.eos_token_id
        return row[: row.index(end)] if end in row else row

    alone = [answers([messages])[0] for messages in asked]
    assert answers(asked) == alone
    assert len({tuple(answer) for answer in alone}) > 1


def test_the_padding_side_and_token_are_saved_whatever_the_tokenizer_was_made_with(tmp_path: Path) -> None:
    _, processor = tiny_llava()
    tokenizer = processor.tokenizer
    tokenizer.pad_token = None
    assert "padding_side" not in tokenizer.init_kwargs and tokenizer.padding_side == "right"
    save_processor(processor, None, tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert (saved.padding_side, saved.pad_token) == ("left", "<unk>")
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", None)  # ours is left as it was


def vicuna_like() -> LlamaTokenizer:
    """The class of Vicuna's tokenizer: pieces with a leading bar, `<s>` added in front."""
    letters = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *letters])}
    return LlamaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True)


def llama_3_like() -> PreTrainedTokenizerFast:
    """Two steps after the tokens: bytes, then `<s>` in front."""
    tokenizer = tiny_tokenizer()
    start = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
    steps = [processors.ByteLevel(trim_offsets=False), start]
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(steps)
    return tokenizer


def with_both_ends() -> PreTrainedTokenizerFast:
    """`<s>` in front and `</s>` behind, where the answer should begin."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "tiny": tiny_tokenizer, "vicuna": vicuna_like, "llama_3": llama_3_like, "both_ends": with_both_ends,
    "mini": llm_tokenizer,
}  # fmt: skip


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", [*CONVERSATIONS, "tokenizer"])
def test_every_way_to_the_prompt_gives_the_ids_of_the_training(tokenizer: str, template: str, tmp_path: Path) -> None:
    if (tokenizer, template) == ("vicuna", "tokenizer"):
        pytest.skip("Vicuna's tokenizer brings no chat template")
    ours = TOKENIZERS[tokenizer]()
    add_image_token(ours)
    vision = type("Vision", (), {"patch_size": 14})()
    processor = llava_processor(ours, tiny_image_processor(), vision, "default")
    turns = [("system", "Be brief."), ("user", "What is it?")]
    rendered = render(turns, template=template, tokenizer=ours, image=True, add_generation_prompt=True)
    [expected] = encode_prompts([rendered], ours, image_tokens=[4])
    ids = expected.input_ids.tolist()
    assert ids.count(ours.bos_token_id) == 1

    save_processor(processor, exported_chat_template(processor, template), tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    messages = [{"role": "system", "content": "Be brief."}, *question("What is it?", tiny_picture())]
    text = loaded.apply_chat_template(messages, add_generation_prompt=True)
    assert text == rendered.text
    picture = [tiny_picture()]
    ways = {
        "messages to ids": loaded.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"],
        "text to ids": loaded(text=text, images=picture)["input_ids"],  # lmms-eval, vLLM's generate
        "text to ids, nothing added": loaded(text=text, images=picture, add_special_tokens=False)["input_ids"],  # TRL
        "text to ids by the tokenizer": [loaded.tokenizer(text.replace("<image>", 4 * "<image>"))["input_ids"]],
    }
    assert ways == dict.fromkeys(ways, [ids])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # For transformers 4 and llama.cpp; the rest of the older spelling is that of the whole directory (test_layout).
    assert (config["add_bos_token"], config["add_eos_token"]) == (False, False)
    assert set(ours.all_special_tokens) == set(loaded.tokenizer.all_special_tokens)


def test_the_training_does_not_mind_the_settings_of_the_tokenizer() -> None:
    _, processor = tiny_llava()
    turns = [[Turn("user", text), Turn("assistant", "A dog.")] for text in QUESTIONS]
    samples = [
        Sample(str(number), (GreyPicture(),), tuple(own), f"Caption {number}.", ("A cat.",))
        for number, own in enumerate(turns)
    ]

    def batch() -> dict[str, Any]:
        collator = Collator(processor, "vicuna_v1", image_tokens=4, retrieved="loss", max_length=400)
        return {name: value for name, value in vars(collator(samples)).items() if isinstance(value, torch.Tensor)}

    before = batch()
    set_for_generation(processor.tokenizer, spelled_out=True)
    assert processor.tokenizer.padding_side == "left" and not adds_special_tokens(processor.tokenizer)
    torch.testing.assert_close(batch(), before, rtol=0, atol=0)


def test_a_pair_and_the_places_of_tokens_stay_as_they_were(tmp_path: Path) -> None:
    _, processor = tiny_llava()
    processor.tokenizer = llama_3_like()
    save_processor(processor, processor.chat_template, tmp_path)
    saved, before = AutoTokenizer.from_pretrained(tmp_path), processor.tokenizer
    for texts in (("A red car.",), ("A red car.", "Is it old?")):
        given = {"add_special_tokens": False, "return_offsets_mapping": True}
        assert saved(*texts, return_offsets_mapping=True) == before(*texts, **given)


def test_without_a_chat_template_the_tokenizer_goes_on_adding_its_tokens(tmp_path: Path) -> None:
    _, processor = tiny_llava()
    processor.chat_template = processor.tokenizer.chat_template = None
    save_processor(processor, exported_chat_template(processor, "plain"), tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved("A red car.")["input_ids"][0] == SPECIAL_TOKENS.index("<s>")


def test_instructblips_processor_starts_texts_itself_and_rendered_ones_once(tmp_path: Path) -> None:
    _, ours = made("instructblip")
    save_processor(ours, exported_chat_template(ours, "instructblip"), tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    rendered = render([("user", "Why?")], template="instructblip", tokenizer=ours.tokenizer, image=True)
    [expected] = encode_prompts([rendered], ours.tokenizer, image_tokens=[5])
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    for text in ("Why?", processor.tokenizer.apply_chat_template(messages, tokenize=False)):
        assert processor(images=tiny_picture(), text=text)["input_ids"] == [expected.input_ids.tolist()]


def test_an_assembled_processor_is_set_as_an_exported_one() -> None:
    tokenizer = tiny_tokenizer()
    vision = type("Vision", (), {"patch_size": 14})()
    processor = llava_processor(tokenizer, tiny_image_processor(), vision, "default")
    text = processor.apply_chat_template([{"role": "user", "content": "<image>\nWhy?"}], add_generation_prompt=True)
    assert processor(text=[text, "Why?"], images=[tiny_picture()], padding=True)["input_ids"][0].count(0) == 1
    assert tokenizer.padding_side == "left"
