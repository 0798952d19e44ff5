"""Every family, on a tiny random model of its real class: image span, hidden states, gradient, formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny_families import FAMILIES, LAYERS, TEMPLATE, WIDTH, made, write_pictures
from tga.data.collate import Batch, Collator
from tga.data.sample import Sample, Turn
from tga.errors import UserError
from tga.vlm.families import component, family_of, family_of_processor, num_layers
from tga.vlm.freezing import freeze, parameter_table
from tga.vlm.hidden_states import multimodal_hidden_states, text_hidden_states
from tga.vlm.image_tokens import check_image_tokens
from tga.vlm.lm_loss import lm_loss
from tga.vlm.pictures import Pictures
from tga.vlm.spans import mean_pool
from tga.vlm.templates import render

OF_TOKENS = {"input_ids", "attention_mask", "mm_token_type_ids"}
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def batch_of(name: str, pictures: dict[str, Path], *, template: str | None = None) -> Batch:
    """A wide picture with a neighbour, words alone, a square picture."""
    model, processor = made(name)
    asked, answered = Turn("user", "What is it?"), Turn("assistant", "A red car.")
    samples = [
        Sample("wide", (pictures["wide"],), (asked, answered), "A red car.", ("A blue chair.",)),
        Sample("words", (), (Turn("user", "How many?"), Turn("assistant", "Two.")), None),
        Sample("square", (pictures["square"],), (asked, answered), "A cup.", ("A tree.",)),
    ]
    tokens = check_image_tokens(model, family_of(model), processor)
    chosen = template or TEMPLATE[name]
    return Collator(processor, chosen, image_tokens=tokens, retrieved="prompt", max_length=400)(samples)


def image_features(model: Any, batch: Batch) -> torch.Tensor:
    """What the model itself makes of the batch's pictures, `[image tokens, width]`."""
    inputs = {
        k: v for k, v in batch.model_inputs().items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    found = model.get_image_features(**inputs).pooler_output
    return torch.cat([vectors.reshape(-1, vectors.shape[-1]) for vectors in found])


@every_family
def test_parts_are_found_and_counted(name: str) -> None:
    model, processor = made(name)
    family = family_of(model)
    assert family is family_of_processor(processor)
    assert num_layers(model, family) == LAYERS
    assert component(model, family.embed_tokens) is model.get_input_embeddings()
    assert component(model, family.lm_head) is model.get_output_embeddings()
    layers = [component(component(model, family.projector), path) for path in family.projector_layers]
    assert all(isinstance(layer, torch.nn.Linear) for layer in layers) and layers[-1].out_features == WIDTH
    freeze(model, family, ["projector"])
    table = {part: (trained, frozen) for part, trained, frozen in parameter_table(model, family)}
    expected = sum(p.numel() for p in component(model, family.projector).parameters())
    assert table["projector"] == (expected, 0)
    assert all(trained == 0 for part, (trained, _) in table.items() if part != "projector")
    assert sum(map(sum, table.values())) == sum(p.numel() for p in model.parameters())
    freeze(model, family, ["vision_tower"])
    assert not any(p.requires_grad for p in component(model, family.projector).parameters())
    assert any(p.requires_grad for p in component(model, family.vision_tower).parameters())


@every_family
@torch.no_grad()
def test_the_image_span_is_where_the_pictures_vectors_stand(name: str, pictures: dict[str, Path]) -> None:
    model, _ = made(name)
    batch = batch_of(name, pictures)
    _, states = multimodal_hidden_states(model, family_of(model), [0], **batch.model_inputs())
    features = image_features(model, batch)
    assert batch.image_mask[1].sum() == 0 and batch.image_mask.sum() == len(features) > 4
    torch.testing.assert_close(states[0][batch.image_mask], features)
    counts = batch.image_mask.sum(1).tolist()
    assert (counts[0] != counts[2]) == family_of(model).tokens_vary


@every_family
def test_ids_and_tensors_equal_those_of_the_processor(name: str, pictures: dict[str, Path]) -> None:
    _, processor = made(name)
    template = TEMPLATE[name]
    codec = Pictures(processor)
    rendered = render(
        [("user", "What is it?")], template=template, tokenizer=processor.tokenizer, image=True,
        add_generation_prompt=True, image_token=codec.token, picture=codec.text,
    )  # fmt: skip
    image = Image.open(pictures["wide"]).convert("RGB")
    if name == "instructblip":  # its processor puts the picture's tokens in front and adds <s> itself
        text, options = rendered.text.removeprefix("<image><s>"), {}
    else:
        text, options = rendered.text, {"add_special_tokens": False}
    expected = processor(images=[[image]], text=[text], return_tensors="pt", **options)
    question = Sample("a", (pictures["wide"],), (Turn("user", "What is it?"), Turn("assistant", "Yes.")), None)
    batch = Collator(processor, template, image_tokens=codec.count((90, 30)), retrieved="none", max_length=400)(
        [question]
    )
    inputs = batch.model_inputs()
    length = expected["input_ids"].shape[1]
    assert inputs["input_ids"][:, :length].tolist() == expected["input_ids"].tolist()
    assert set(inputs) == set(expected)
    for key in set(inputs) - OF_TOKENS:
        torch.testing.assert_close(inputs[key], expected[key])
    if "mm_token_type_ids" in inputs:
        assert inputs["mm_token_type_ids"][:, :length].tolist() == expected["mm_token_type_ids"].tolist()


@every_family
def test_the_guide_loss_reaches_every_parameter_of_the_projector(name: str, pictures: dict[str, Path]) -> None:
    model, processor = made(name)
    family = family_of(model)
    freeze(model, family, ["projector"])
    batch = batch_of(name, pictures)
    last, states = multimodal_hidden_states(model, family, [0, 1, LAYERS], **batch.model_inputs())
    assert last.shape == (3, batch.input_ids.shape[1], WIDTH)
    ids, attention, span = batch.caption_ids, batch.caption_attention_mask, batch.caption_mask
    with torch.no_grad():
        targets = text_hidden_states(model, family, ids, attention, [0, 1, LAYERS])
    loss = torch.stack(
        [
            torch.cosine_similarity(mean_pool(states[layer], batch.image_mask)[0], mean_pool(targets[layer], span)[0])
            for layer in (0, 1, LAYERS)
        ]
    ).sum()
    model.zero_grad()
    loss.backward(retain_graph=True)
    parameters = dict(component(model, family.projector).named_parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters.values())
    model.zero_grad()
    lm_loss(model, family, last, batch.labels).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters.values())
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@every_family
def test_words_alone_give_the_projector_a_zero_gradient(name: str) -> None:
    model, processor = made(name)
    family = family_of(model)
    freeze(model, family, ["projector"])
    ids = processor.tokenizer("How many cats?", return_tensors="pt").input_ids
    last, _ = multimodal_hidden_states(model, family, [], input_ids=ids, attention_mask=torch.ones_like(ids))
    alone = text_hidden_states(model, family, ids, torch.ones_like(ids), [LAYERS])[LAYERS]
    torch.testing.assert_close(component(model, family.final_norm)(alone), last)
    model.zero_grad()
    lm_loss(model, family, last, ids).backward()
    assert all(p.grad is not None and not p.grad.any() for p in component(model, family.projector).parameters())


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next", "idefics3"])
def test_the_models_own_chat_format_is_kept(name: str) -> None:
    """With template=tokenizer the prompt is what the processor's apply_chat_template gives."""
    _, processor = made(name)
    codec = Pictures(processor)
    rendered = render(
        [("user", "What is it?"), ("assistant", "A dog.")], template="tokenizer", tokenizer=processor.tokenizer,
        image=True, image_token=codec.token, picture=codec.text,
    )  # fmt: skip
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]
    assert rendered.text == processor.apply_chat_template(messages)
    end = {"qwen2_5_vl": "<|im_end|>", "llava_next": "</s>", "idefics3": "<end_of_utterance>"}[name]
    assert [rendered.text[a:b] for a, b in rendered.assistant] == [f"A dog.{end}"]


def test_retrieved_text_goes_before_the_picture_even_where_the_template_would_put_it_behind() -> None:
    _, processor = made("llava_next")
    rendered = render(
        [("user", "What is it?")], template="tokenizer", tokenizer=processor.tokenizer, image=True, retrieved="A cat."
    )
    assert rendered.text == "<s>[INST] A cat.\n<image>\nWhat is it? [/INST]"


def test_a_size_that_the_processor_refuses_is_named() -> None:
    _, processor = made("qwen2_5_vl")
    with pytest.raises(UserError, match=r"refuses pictures of this size.*Given: 5000 x 10 pixels"):
        Pictures(processor).tokens((5000, 10))


def test_a_foreign_processor_is_refused() -> None:
    with pytest.raises(UserError, match=r"Given: object\. Allowed: LlavaProcessor, "):
        family_of_processor(object())
