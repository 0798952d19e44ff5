"""A directory of any family is loaded as it was saved, with the chat template of its processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_families import FAMILIES, TEMPLATE, made, write_pictures
from tga.data.collate import Collator
from tga.data.sample import Sample, Turn
from tga.vlm.assemble import load_vlm
from tga.vlm.families import family_of
from tga.vlm.image_tokens import check_image_tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_comes_back(name: str, tmp_path: Path) -> None:
    model, processor = made(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, its_processor = load_vlm(str(tmp_path), attn_implementation="eager")
    assert type(again) is type(model) and not again.training and type(its_processor) is type(processor)
    assert its_processor.tokenizer.chat_template == processor.tokenizer.chat_template
    turns = (Turn("user", "What?"), Turn("assistant", "A dog."))
    sample = Sample("a", (write_pictures(tmp_path)["wide"],), turns, None)
    tokens = check_image_tokens(again, family_of(again), its_processor)
    inputs, expected = (
        Collator(its, TEMPLATE[name], image_tokens=tokens, retrieved="none", max_length=400)([sample]).model_inputs()
        for its in (its_processor, processor)
    )
    assert inputs.keys() == expected.keys()
    for key, value in inputs.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
