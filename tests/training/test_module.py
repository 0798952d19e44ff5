"""The training step: where the gradient goes, what the losses are, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from tests.tiny import tiny_llava, tiny_picture
from tga.alignment.tga import TGA
from tga.data.collate import Batch, Collator
from tga.data.sample import Sample, Turn
from tga.errors import UserError
from tga.training.module import AlignmentModule
from tga.vlm.families import family_of
from tga.vlm.freezing import freeze

CAPTIONS = ["A red car beside a tree.", "Two cats."]
NEIGHBOURS = ["A blue chair.", "A cup of tea on a table."]


def build(directory: Path, *, retrieved: str = "loss", **options: Any) -> tuple[AlignmentModule, Batch]:
    """A module whose projector trains, and a batch of two pictures and a text-only sample."""
    model, processor = tiny_llava()
    freeze(model, family_of(model), ["projector"])
    samples = [Sample("t", (), (Turn("user", "How many?"), Turn("assistant", "Two.")), None)]
    for i, (caption, neighbour) in enumerate(zip(CAPTIONS, NEIGHBOURS, strict=True)):
        tiny_picture(i).save(directory / f"{i}.png")
        turns = (Turn("user", "Describe."), Turn("assistant", caption))
        samples.append(Sample(str(i), (directory / f"{i}.png",), turns, caption, (neighbour,)))
    collator = Collator(processor, "plain", image_tokens=4, retrieved=retrieved, max_length=200)
    settings: dict[str, Any] = {"learning_rate": 1e-3, "total_steps": 10, **options}
    objectives = settings.pop("objectives", [TGA((0, 1, 3))])
    return AlignmentModule(model, family_of(model), objectives, **settings), collator(samples)


def gradients(module: AlignmentModule) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("retrieved", ["loss", "prompt"])
def test_the_guide_gradient_reaches_the_projector_without_the_lm_loss(retrieved: str, tmp_path: Path) -> None:
    module, batch = build(tmp_path, retrieved=retrieved, lm_weight=0.0)
    losses = module.step_losses(batch, 0.0)
    assert set(losses) == {"tga_pair", "tga_rank"}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    found = gradients(module)
    assert len(found) == 4 and all("multi_modal_projector" in name for name in found)
    assert all(float(gradient.norm()) > 1e-6 for gradient in found.values() if gradient is not None)


@pytest.mark.parametrize(("layers", "step", "tolerance"), [((0,), 1e-5, 1e-7), ((0, 1, 3), 1e-2, 2e-3)])
def test_the_guide_gradient_matches_finite_differences(
    layers: tuple[int, ...], step: float, tolerance: float, tmp_path: Path
) -> None:
    """Behind layer 0 the decoder's norms compute in float32 whatever the dtype: a wider step, and fewer digits."""
    module, batch = build(tmp_path, lm_weight=0.0, objectives=[TGA(layers)])
    module.double()
    assert batch.pixel_values is not None
    batch.pixel_values = batch.pixel_values.double()
    weight = module.model.get_parameter("model.multi_modal_projector.linear_2.weight")

    def guide() -> Tensor:
        return torch.stack(list(module.step_losses(batch, 0.0).values())).sum()

    (gradient,) = torch.autograd.grad(guide(), weight)
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    start, values = weight.detach().clone(), {}
    for steps in (-2, -1, 1, 2):
        with torch.no_grad():
            weight.copy_(start + steps * step * direction)
            values[steps] = guide()
    slope = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=tolerance, atol=1e-9)


def test_the_losses_are_those_of_plain_transformers(tmp_path: Path) -> None:
    """LM loss of the model's own forward; cosines of its own hidden states, pooled by hand, sample by sample."""
    module, batch = build(tmp_path)
    model = module.model
    with torch.no_grad():
        losses = module.step_losses(batch, 0.0)
        own = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels,
            pixel_values=batch.pixel_values, output_hidden_states=True,
        )  # fmt: skip
        torch.testing.assert_close(losses["lm"], own.loss)
        pair, rank = [], []
        tokenizer = tiny_llava()[1].tokenizer
        for row, (caption, neighbour) in enumerate(zip(CAPTIONS, NEIGHBOURS, strict=True), start=1):
            for layer in (0, 1):
                image = own.hidden_states[layer][row][batch.image_mask[row]].mean(0)
                texts = []
                for text in (caption, neighbour):
                    ids = tokenizer(text, return_tensors="pt")["input_ids"]
                    states = model.model.language_model(input_ids=ids, output_hidden_states=True).hidden_states
                    texts.append(states[layer][0, 1:].mean(0))
                near = cosine_similarity(image, texts[0], dim=0)
                pair.append(-near)
                rank.append(softplus(cosine_similarity(texts[1], texts[0], dim=0) - near))
    module.objectives = [TGA((0, 1))]
    module.layers = (0, 1)
    with torch.no_grad():
        losses = module.step_losses(batch, 0.0)
    torch.testing.assert_close(losses["tga_pair"], torch.stack(pair).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["tga_rank"], torch.stack(rank).mean(), rtol=1e-5, atol=1e-6)


def test_a_batch_of_text_alone_trains_with_a_zero_guide_loss(tmp_path: Path) -> None:
    module, batch = build(tmp_path)
    processor = tiny_llava()[1]
    collator = Collator(processor, "plain", image_tokens=4, retrieved="loss", max_length=99)
    only = collator([Sample("t", (), (Turn("user", "How many?"), Turn("assistant", "Two.")), None)])
    losses = module.step_losses(only, 0.0)
    assert losses["tga_pair"] == 0 and losses["tga_rank"] == 0 and losses["lm"] > 0


def test_the_gradient_norm_is_that_of_the_guide_alone(tmp_path: Path) -> None:
    module, batch = build(tmp_path)
    losses = module.step_losses(batch, 0.0)
    measured = module.measure_guide_gradient(losses)
    (losses["tga_pair"] + losses["tga_rank"]).backward()
    squares = [float(gradient.square().sum()) for gradient in gradients(module).values() if gradient is not None]
    assert measured == pytest.approx(math.sqrt(sum(squares)), rel=1e-5) and measured > 0


def test_a_loss_that_is_not_finite_names_the_samples(tmp_path: Path) -> None:
    module, batch = build(tmp_path)
    with torch.no_grad():
        module.model.get_parameter("model.multi_modal_projector.linear_1.bias").fill_(math.nan)
    with pytest.raises(UserError, match=r"not finite at step 0 \(lm=nan.*\['t', '0', '1'\]"):
        module.training_step(batch, 0)


def test_two_objectives_of_one_name_are_refused(tmp_path: Path) -> None:
    module, batch = build(tmp_path, objectives=[TGA((1,)), TGA((2,))])
    with pytest.raises(UserError, match="tga_pair"):
        module.step_losses(batch, 0.0)


def test_warm_up_and_cosine(tmp_path: Path) -> None:
    module, _ = build(tmp_path, warmup_steps=4, total_steps=24, min_lr_ratio=0.1)
    factors = [module.learning_rate_factor(step) for step in (0, 3, 4, 14, 24, 30)]
    assert factors == pytest.approx([0.25, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_a_checkpoint_holds_what_trains_and_refuses_another(tmp_path: Path) -> None:
    module, _ = build(tmp_path, hyper_parameters={"base_model": {"vlm": "here"}}, centre=torch.ones(3, 32))
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    assert len(content["state_dict"]) == 5 and content["hyper_parameters"] == {"base_model": {"vlm": "here"}}
    module.on_load_checkpoint(content)
    weights = content["state_dict"]
    weights["model.model.multi_modal_projector.linear_1.weight"] = torch.zeros(32, 25)
    weights["model.model.other"] = weights.pop("model.model.multi_modal_projector.linear_2.bias")
    with pytest.raises(UserError) as error:
        module.on_load_checkpoint(content)
    message = str(error.value)
    assert "only the checkpoint has model.model.other" in message
    assert "only the model has model.model.multi_modal_projector.linear_2.bias" in message
    assert "[32, 25] in the checkpoint and [32, 24] in the model" in message and "here" in message
