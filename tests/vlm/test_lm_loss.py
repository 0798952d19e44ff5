"""The loss on label positions equals the loss over all logits, in value and in gradient."""

from __future__ import annotations

import torch

from tests.tiny import tiny_llava, tiny_picture
from tga.vlm.families import family_of
from tga.vlm.hidden_states import multimodal_hidden_states
from tga.vlm.lm_loss import lm_loss


def _batch(processor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    texts = ["<s><image>\nA red car.</s>", "<s><image>\nTwo cats sit on the blue chair.</s>"]
    inputs = dict(
        processor(
            images=[tiny_picture(0), tiny_picture(1)],
            text=texts,
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
    )
    labels = inputs["input_ids"].clone()
    labels[:, :6] = -100
    labels[inputs["attention_mask"] == 0] = -100
    return inputs, labels


def test_equal_to_the_loss_of_transformers_in_value_and_gradient() -> None:
    model, processor = tiny_llava()
    family = family_of(model)
    inputs, labels = _batch(processor)
    weight = model.model.multi_modal_projector.linear_2.weight
    expected = model(**inputs, labels=labels).loss
    expected_gradient = torch.autograd.grad(expected, weight)[0]
    last, _ = multimodal_hidden_states(model, family, [], **inputs)
    loss = lm_loss(model, family, last, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], expected_gradient, rtol=1e-5, atol=1e-7)


def test_the_head_sees_label_positions_only() -> None:
    model, processor = tiny_llava()
    inputs, labels = _batch(processor)
    last, _ = multimodal_hidden_states(model, family_of(model), [], **inputs)
    seen = []
    model.lm_head.register_forward_hook(lambda _m, args, _o: seen.append(tuple(args[0].shape)))
    lm_loss(model, family_of(model), last, labels)
    assert seen == [(int((labels != -100).sum()), 32)]


def test_without_labels_it_is_a_zero_that_carries_a_zero_gradient() -> None:
    model, _ = tiny_llava()
    hidden = torch.randn(2, 3, 32, requires_grad=True)
    loss = lm_loss(model, family_of(model), hidden, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad.abs().max() == 0.0
