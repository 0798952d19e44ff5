"""Hidden states: equal to what transformers reports, un-normed, with gradient, and with no hook left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny_llava, tiny_picture
from tests.tiny_families import FAMILIES, made
from tga.errors import UserError
from tga.vlm.families import component, family_of, num_layers
from tga.vlm.hidden_states import capture_hidden_states, multimodal_hidden_states, text_hidden_states


def multimodal_inputs(processor) -> dict[str, Tensor]:
    texts = ["<s>USER: <image>\nWhat is it? ASSISTANT:", "<s>USER: <image>\nIs it red or green? ASSISTANT:"]
    inputs = processor(
        images=[tiny_picture(0), tiny_picture(1)],
        text=texts,
        return_tensors="pt",
        padding=True,
        add_special_tokens=False,
    )
    return dict(inputs)


def hooks_left(model: nn.Module) -> int:
    """Hooks in the language model; transformers leaves some of its own there after `output_hidden_states=True`."""
    model = model.model.language_model
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_states_equal_those_of_transformers_and_the_last_is_not_normed() -> None:
    model, processor = tiny_llava()
    family, inputs = family_of(model), multimodal_inputs(processor)
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True).hidden_states
        before = hooks_left(model)
        last, states = multimodal_hidden_states(model, family, [0, 1, 2, 3], **inputs)
    for layer in (0, 1, 2):
        torch.testing.assert_close(states[layer], expected[layer], rtol=0, atol=0)
    torch.testing.assert_close(model.model.language_model.norm(states[3]), last, rtol=0, atol=0)
    assert not torch.allclose(states[3], last, atol=1e-2)
    torch.testing.assert_close(last, expected[3], rtol=0, atol=0)
    assert hooks_left(model) == before


def test_layer_zero_holds_the_projectors_output_at_image_tokens() -> None:
    model, processor = tiny_llava()
    family, inputs = family_of(model), multimodal_inputs(processor)
    with torch.no_grad():
        _, states = multimodal_hidden_states(model, family, [0], **inputs)
        projected = torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
    torch.testing.assert_close(states[0][inputs["input_ids"] == 4], projected.reshape(-1, 32))


def test_text_states_equal_the_full_run_and_deeper_layers_do_not_run() -> None:
    model, processor = tiny_llava()
    family = family_of(model)
    ids = processor.tokenizer("A dog and a ball.", return_tensors="pt").input_ids
    ran = []
    handle = model.model.language_model.layers[2].register_forward_hook(lambda *_: ran.append(True))
    with torch.no_grad():
        states = text_hidden_states(model, family, ids, torch.ones_like(ids), [0, 2])
        assert ran == []
        handle.remove()
        assert hooks_left(model) == 0
        expected = model.model.language_model(input_ids=ids, output_hidden_states=True).hidden_states
    assert sorted(states) == [0, 2]
    for layer in (0, 2):
        torch.testing.assert_close(states[layer], expected[layer])


def test_text_states_do_not_depend_on_the_padding_side() -> None:
    model, processor = tiny_llava()
    family = family_of(model)
    ids = processor.tokenizer("A dog and a ball.", return_tensors="pt").input_ids
    pad = torch.full((1, 3), 2)
    zeros, ones = torch.zeros_like(pad), torch.ones_like(ids)
    with torch.no_grad():
        plain = text_hidden_states(model, family, ids, ones, [0, 3])
        right = text_hidden_states(model, family, torch.cat([ids, pad], 1), torch.cat([ones, zeros], 1), [0, 3])
        left = text_hidden_states(model, family, torch.cat([pad, ids], 1), torch.cat([zeros, ones], 1), [0, 3])
    for layer in (0, 3):
        torch.testing.assert_close(right[layer][:, :-3], plain[layer], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(left[layer][:, 3:], plain[layer], rtol=1e-5, atol=1e-5)


def test_no_layer_means_no_run() -> None:
    model, _ = tiny_llava()
    ids = torch.ones(1, 2, dtype=torch.long)
    assert text_hidden_states(model, family_of(model), ids, ids, []) == {}


@pytest.mark.parametrize("layers", [[-1], [0, 4]])
def test_layers_outside_the_model_are_refused(layers: list[int]) -> None:
    model, _ = tiny_llava()
    with pytest.raises(UserError, match=r"Allowed: 0 .* to 3"):
        with capture_hidden_states(model, family_of(model), layers):
            pass
    assert hooks_left(model) == 0


def test_a_block_without_a_forward_pass_is_an_error() -> None:
    model, _ = tiny_llava()
    with pytest.raises(RuntimeError, match=r"no hidden state arrived from layers \[1\]"):
        with capture_hidden_states(model, family_of(model), [1]):
            pass


def test_hooks_are_gone_after_an_exception_inside_the_block() -> None:
    model, _ = tiny_llava()
    with pytest.raises(ZeroDivisionError):
        with capture_hidden_states(model, family_of(model), [0, 1]):
            _ = 1 / 0
    assert hooks_left(model) == 0


def test_gradient_is_the_same_under_gradient_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model, processor = tiny_llava()
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        _, states = multimodal_hidden_states(model, family_of(model), [1, 2], **multimodal_inputs(processor))
        (states[1].square().mean() + states[2].square().mean()).backward()
        gradients.append(model.model.multi_modal_projector.linear_1.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


class _TupleLayer(nn.Module):
    """A decoder layer of the older kind, which returns a tuple."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return (self.layer(*args, **kwargs),)


def test_layers_that_return_a_tuple_are_read() -> None:
    model, processor = tiny_llava()
    family = family_of(model)
    ids = processor.tokenizer("A dog.", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = text_hidden_states(model, family, ids, torch.ones_like(ids), [1])
        model.model.language_model.layers[0] = _TupleLayer(model.model.language_model.layers[0])
        states = text_hidden_states(model, family, ids, torch.ones_like(ids), [1])
    torch.testing.assert_close(states[1], expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_read_without_dropout_of_any_kind(family: str) -> None:
    """In train mode two readings are equal, though attention drops half; and the mode of every part comes back."""
    model, processor = copy.deepcopy(made(family))
    language_model = component(model, family_of(model).language_model)
    for part in language_model.modules():
        if hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.5
    model.train()
    component(model, family_of(model).decoder_layers)[1].eval()
    modes = {name: part.training for name, part in model.named_modules()}
    ids = processor.tokenizer("a red car stands", return_tensors="pt", add_special_tokens=False).input_ids
    layers = range(1, num_layers(model, family_of(model)) + 1)
    first, second = (text_hidden_states(model, family_of(model), ids, torch.ones_like(ids), layers) for _ in range(2))
    for layer in layers:
        torch.testing.assert_close(first[layer], second[layer], rtol=0, atol=0)
    assert {name: part.training for name, part in model.named_modules()} == modes
    dropped = [language_model(input_ids=ids, use_cache=False).last_hidden_state for _ in range(2)]
    assert not torch.equal(*dropped)  # the student's own forward still drops
