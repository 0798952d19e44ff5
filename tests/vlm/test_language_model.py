"""A language model by itself: its parts; the same one in a VLM, in another dtype and with more tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_llm, write_tiny_parts
from tga.errors import UserError
from tga.vlm.assemble import assemble_llava
from tga.vlm.families import component, family_of, num_layers
from tga.vlm.language_model import LANGUAGE_MODEL, identify_language_model


def test_its_parts_are_found_and_pictures_have_none() -> None:
    llm = tiny_llm()
    assert component(llm, LANGUAGE_MODEL.language_model) is llm.model
    assert component(llm, LANGUAGE_MODEL.final_norm) is llm.model.norm
    assert component(llm, LANGUAGE_MODEL.lm_head) is llm.lm_head
    assert component(llm, LANGUAGE_MODEL.embed_tokens) is llm.get_input_embeddings()
    assert num_layers(llm, LANGUAGE_MODEL) == 3
    with pytest.raises(UserError, match="no module at vision_tower"):
        component(llm, LANGUAGE_MODEL.vision_tower)


def test_one_model_has_one_identity(tmp_path: Path) -> None:
    llm = tiny_llm()
    found = identify_language_model(llm, LANGUAGE_MODEL)
    assert (found.num_layers, found.width) == (3, 32)
    vlm, _ = assemble_llava(*map(str, write_tiny_parts(tmp_path)), seed=5)
    assert identify_language_model(vlm, family_of(vlm)) == found
    llm.resize_token_embeddings(llm.config.vocab_size + 8)
    assert identify_language_model(llm.to(torch.bfloat16), LANGUAGE_MODEL) == found


def test_other_weights_are_another_model() -> None:
    llm = tiny_llm()
    found = identify_language_model(llm, LANGUAGE_MODEL)
    with torch.no_grad():
        llm.model.layers[2].mlp.down_proj.weight.mul_(1.1)
    assert identify_language_model(llm, LANGUAGE_MODEL).fingerprint != found.fingerprint
