"""Assembly: a real LLaVA that plain transformers reloads unchanged; wrong parts are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tests.tiny import tiny_picture, write_tiny_parts
from tga.errors import UserError
from tga.vlm.assemble import assemble_llava, load_vlm
from tga.vlm.families import family_of
from tga.vlm.image_tokens import check_image_tokens

PROMPT = "<s>USER: <image>\nWhat is it? ASSISTANT:"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    llm, vision = write_tiny_parts(tmp_path_factory.mktemp("parts"))
    return str(llm), str(vision)


def _inputs(processor: LlavaProcessor) -> dict[str, torch.Tensor]:
    return dict(processor(images=[tiny_picture()], text=PROMPT, return_tensors="pt", add_special_tokens=False))


def test_saved_and_loaded_by_plain_transformers_it_is_the_same_model(parts, tmp_path: Path) -> None:
    model, processor = assemble_llava(*parts)
    assert type(model) is LlavaForConditionalGeneration
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    plain_processor = LlavaProcessor.from_pretrained(tmp_path)
    inputs, plain_inputs = _inputs(processor), _inputs(plain_processor)
    for name, value in inputs.items():
        torch.testing.assert_close(plain_inputs[name], value, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    ours, _ = load_vlm(str(tmp_path))
    expected = plain.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert ours.generate(**inputs, max_new_tokens=4, do_sample=False).tolist() == expected.tolist()


def test_parts_keep_their_weights_and_the_projector_follows_the_seed(parts) -> None:
    torch.manual_seed(11)
    undisturbed = torch.rand(1)
    torch.manual_seed(11)
    first, _ = assemble_llava(*parts, seed=5)
    assert torch.rand(1) == undisturbed
    again, _ = assemble_llava(*parts, seed=5)
    other, _ = assemble_llava(*parts, seed=6)
    weights = [m.model.multi_modal_projector.linear_1.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    llm = AutoModelForCausalLM.from_pretrained(parts[0])
    torch.testing.assert_close(first.model.language_model.state_dict(), llm.model.state_dict(), rtol=0, atol=0)
    vision = CLIPVisionModel.from_pretrained(parts[1])
    torch.testing.assert_close(first.model.vision_tower.state_dict(), vision.state_dict(), rtol=0, atol=0)
    assert not any(p.is_meta for p in first.parameters()) and not any(b.is_meta for b in first.buffers())


@pytest.mark.parametrize(("strategy", "tokens"), [("default", 4), ("full", 5)])
def test_processor_and_tower_agree_on_the_number_of_image_tokens(parts, strategy: str, tokens: int) -> None:
    model, processor = assemble_llava(*parts, vision_feature_select_strategy=strategy)
    assert check_image_tokens(model, family_of(model), processor) == tokens
    assert model.config.image_seq_length == tokens


def test_disagreement_shows_both_sides(parts) -> None:
    model, processor = assemble_llava(*parts)
    processor.num_additional_image_tokens = 0
    with pytest.raises(UserError, match="the processor writes 3, the tower gives 4"):
        check_image_tokens(model, family_of(model), processor)


@pytest.mark.parametrize("tied", [False, True])
def test_a_missing_image_token_is_added(parts, tmp_path: Path, tied: bool) -> None:
    words = Tokenizer.from_str(
        '{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"Whitespace"},'
        '"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"<unk>":0,"</s>":1,"dog":2},'
        '"unk_token":"<unk>"}}'
    )
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=3,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model, processor = assemble_llava(str(tmp_path), parts[1])
    assert processor.image_token_id == 3 == model.config.image_token_id
    assert model.get_input_embeddings().weight.shape == (4, 16) == model.lm_head.weight.shape
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert processor.tokenizer.pad_token == "<unk>"
    assert check_image_tokens(model, family_of(model), processor) == 4
    saved = tmp_path / "vlm"
    model.save_pretrained(saved)
    processor.save_pretrained(saved)
    loaded, loaded_processor = load_vlm(str(saved))
    inputs = dict(loaded_processor(images=[tiny_picture()], text="<image> dog", return_tensors="pt"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


def test_wrong_parts_are_refused(parts, tmp_path: Path) -> None:
    llm, vision = parts
    with pytest.raises(UserError, match="Not a CLIP vision tower.*'llama'.*Allowed: clip, clip_vision_model"):
        assemble_llava(llm, llm)
    with pytest.raises(UserError, match=r"Cannot load .*To change it: model\.llm="):
        assemble_llava(vision, vision)
    with pytest.raises(UserError, match=r"there is no such directory\. .*To change it: model\.vlm="):
        load_vlm(str(tmp_path / "nothing" / "here"))
    with pytest.raises(UserError, match="Not a vision-language model of a supported family.*'llama'.*'llava'"):
        load_vlm(llm)
    with pytest.raises(UserError, match="Allowed: default, full"):
        assemble_llava(llm, vision, vision_feature_select_strategy="some")
    with pytest.raises(UserError, match="Given: -4. Allowed: -3 to 2"):
        assemble_llava(llm, vision, vision_feature_layer=-4)


def test_missing_weights_are_refused_not_drawn_at_random(parts, tmp_path: Path) -> None:
    model, processor = assemble_llava(*parts)
    state = {k: v for k, v in model.state_dict().items() if "linear_2" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    processor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"would stay random.*linear_2"):
        load_vlm(str(tmp_path))
