"""Families: paths lead to the right modules, and unsupported models are refused with the list of supported ones."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_llava, tiny_llm
from tga.errors import UserError
from tga.vlm.families import component, family_of, image_token_id, num_layers


def test_llava_components_are_the_models_own() -> None:
    model, processor = tiny_llava()
    family = family_of(model)
    assert family.name == "llava"
    assert component(model, family.vision_tower) is model.model.vision_tower
    assert component(model, family.projector) is model.model.multi_modal_projector
    assert component(model, family.language_model) is model.model.language_model
    assert component(model, family.final_norm) is model.model.language_model.norm
    assert component(model, family.embed_tokens) is model.get_input_embeddings()
    assert component(model, family.lm_head) is model.get_output_embeddings()
    assert num_layers(model, family) == 3
    assert image_token_id(model, family) == processor.tokenizer.convert_tokens_to_ids("<image>")


def test_an_unsupported_model_is_refused_with_the_supported_types() -> None:
    with pytest.raises(UserError, match=r"LlamaForCausalLM with model_type 'llama'.*Allowed: model_type 'llava'"):
        family_of(tiny_llm())


def test_a_path_that_leads_nowhere_is_named() -> None:
    model, _ = tiny_llava()
    with pytest.raises(UserError, match=r"no module at model\.nowhere"):
        component(model, "model.nowhere")
