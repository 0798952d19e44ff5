"""The guide loss reaches the projector: its gradient is not zero and equals finite differences.

This is what the released code lacks: its exponential leaves the graph. The whole path runs in float64, from pixels
through projector and language model to the pooled states and the loss.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tests.alignment.conftest import GuideOracle
from tests.tiny import tiny_llava, tiny_picture
from tga.alignment.objective import Spans
from tga.alignment.tga import TGA, located, paper, released
from tga.vlm.families import family_of
from tga.vlm.freezing import freeze
from tga.vlm.hidden_states import multimodal_hidden_states, text_hidden_states
from tga.vlm.spans import mean_pool
from tga.vlm.templates import render
from tga.vlm.token_spans import encode, encode_text

CAPTIONS = ["A red car stands beside a tree.", "Tea"]
RETRIEVED = ["two cats on a chair", "a dog"]


class GuideLoss:
    """The guide loss of a batch as a function of the model's weights.

    `kinds` has a letter per sample: "I" with a picture, "T" without; `padding` is the side that is padded.
    """

    def __init__(self, objective: TGA, padding: str, kinds: str = "II") -> None:
        model, processor = tiny_llava()
        self.model, self.objective = in_float64(model), objective
        self.family = family_of(model)
        freeze(model, self.family, ["projector"])
        tokenizer = processor.tokenizer
        encoded = [
            encode(
                render(
                    [("user", "Describe it."), ("assistant", caption)],
                    template="plain",
                    tokenizer=tokenizer,
                    image=kind == "I",
                    retrieved=retrieved,
                ),
                tokenizer,
                image_tokens=4,
            )
            for caption, retrieved, kind in zip(CAPTIONS, RETRIEVED, kinds, strict=False)
        ]
        self.ids = pad([e.input_ids for e in encoded], 2, padding)
        self.attention = pad([torch.ones_like(e.input_ids) for e in encoded], 0, padding)
        self.image_mask = pad([e.image_mask for e in encoded], False, padding)
        self.retrieved_mask = pad([e.retrieved_mask for e in encoded], False, padding)
        pictures = [tiny_picture(i) for i, kind in enumerate(kinds) if kind == "I"]
        self.pixels = None
        if pictures:
            self.pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"].double()
        texts = [encode_text(tokenizer, caption) for caption in CAPTIONS[: len(kinds)]]
        self.caption_ids = pad([ids for ids, _ in texts], 2, padding)
        self.caption_attention = pad([torch.ones_like(ids) for ids, _ in texts], 0, padding)
        self.caption_mask = pad([mask for _, mask in texts], False, padding)

    def __call__(self) -> Tensor:
        layers = self.objective.layers
        positions = (self.attention.cumsum(1) - 1).clamp(min=0)
        _, states = multimodal_hidden_states(
            self.model,
            self.family,
            layers,
            input_ids=self.ids,
            attention_mask=self.attention,
            position_ids=positions,
            pixel_values=self.pixels,
        )
        with torch.no_grad():
            targets = text_hidden_states(self.model, self.family, self.caption_ids, self.caption_attention, layers)
        spans = Spans(
            layers,
            torch.stack([mean_pool(states[layer], self.image_mask)[0] for layer in layers]),
            torch.stack([mean_pool(targets[layer], self.caption_mask)[0] for layer in layers]),
            torch.stack([mean_pool(states[layer], self.retrieved_mask)[0] for layer in layers]),
            self.image_mask.any(dim=1),
            self.retrieved_mask.any(dim=1),
        )
        return sum(self.objective.losses(spans, 0.25).values(), torch.zeros(()))


def in_float64(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The model in float64 throughout: Llama's own norm and its eager softmax step down to float32 inside."""
    model.set_attn_implementation("sdpa")
    language_model = model.model.language_model
    for layer in language_model.layers:
        layer.input_layernorm = as_torch_norm(layer.input_layernorm)
        layer.post_attention_layernorm = as_torch_norm(layer.post_attention_layernorm)
    language_model.norm = as_torch_norm(language_model.norm)
    return model.double()


def as_torch_norm(norm: nn.Module) -> nn.RMSNorm:
    same = nn.RMSNorm(norm.weight.shape[0], eps=norm.variance_epsilon)
    same.load_state_dict(norm.state_dict())
    return same


def pad(rows: list[Tensor], value: int | bool, side: str) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


CENTRE = torch.linspace(-0.5, 0.5, 64, dtype=torch.float64).reshape(2, 32)
OBJECTIVES = {
    "paper": paper(3),
    "released": released((1, 2)),
    "located": located((0, 2)),
    "centred": TGA((0, 3), centre=CENTRE),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("weight", ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"])
def test_gradient_at_the_projector_equals_finite_differences(name: str, weight: str) -> None:
    loss = GuideLoss(OBJECTIVES[name], "right")
    parameter = loss.model.model.multi_modal_projector.get_parameter(weight)
    gradient = torch.autograd.grad(loss(), parameter)[0]
    assert gradient.norm() > 1e-3
    direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-5
    with torch.no_grad():
        parameter.add_(direction, alpha=step)
        above = loss()
        parameter.sub_(direction, alpha=2 * step)
        below = loss()
    expected = (above - below) / (2 * step)
    # Central differences: error of order step^2 times the third derivative, and 1e-16 / step of rounding.
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-8)


def test_nothing_but_the_projector_gets_a_gradient() -> None:
    loss = GuideLoss(OBJECTIVES["located"], "right")
    loss().backward()
    with_gradient = {name for name, p in loss.model.named_parameters() if p.grad is not None}
    prefix = "model.multi_modal_projector."
    expected = {prefix + n for n in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")}
    assert with_gradient == expected


def test_left_and_right_padding_give_the_same_loss_and_gradient() -> None:
    results = []
    for side in ("left", "right"):
        loss = GuideLoss(OBJECTIVES["paper"], side)
        value = loss()
        value.backward()
        results.append((value.detach(), loss.model.model.multi_modal_projector.linear_1.weight.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=1e-9)


def test_a_text_only_sample_in_the_batch_changes_nothing() -> None:
    alone, mixed = GuideLoss(OBJECTIVES["centred"], "right", "I"), GuideLoss(OBJECTIVES["centred"], "right", "IT")
    values = [loss() for loss in (alone, mixed)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-12)
    gradients = [
        torch.autograd.grad(value, loss.model.model.multi_modal_projector.linear_1.weight)[0]
        for value, loss in zip(values, (alone, mixed), strict=True)
    ]
    assert gradients[0].norm() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-12)


def test_a_text_only_batch_has_zero_loss_and_a_zero_gradient_at_the_projector() -> None:
    loss = GuideLoss(OBJECTIVES["paper"], "right", "TT")
    value = loss()
    assert value.item() == 0.0
    value.backward()
    for parameter in loss.model.model.multi_modal_projector.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


@pytest.mark.parametrize("form", ["log", "exp"])
def test_gradient_at_the_pooled_states_passes_gradcheck(oracle: GuideOracle, form: str) -> None:
    objective = TGA(oracle.spans.layers, form=form)

    def guide(image: Tensor) -> Tensor:
        return sum(objective.losses(dataclasses.replace(oracle.spans, image=image), 0.3).values(), torch.zeros(()))

    assert torch.autograd.gradcheck(guide, (oracle.spans.image.clone().requires_grad_(),))


def test_retrieved_text_gets_a_gradient_only_on_request(oracle: GuideOracle) -> None:
    retrieved = oracle.spans.retrieved.clone().requires_grad_()
    spans = dataclasses.replace(
        oracle.spans, retrieved=retrieved, caption=oracle.spans.caption.clone().requires_grad_()
    )
    off = sum(TGA(spans.layers).losses(spans, 0.0).values(), torch.zeros(()))
    assert not off.requires_grad
    on = sum(TGA(spans.layers, retrieved_gradient=True).losses(spans, 0.0).values(), torch.zeros(()))
    assert torch.autograd.grad(on, retrieved)[0].norm() > 1e-3
