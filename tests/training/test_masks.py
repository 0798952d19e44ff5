"""A training step over every shape of batch: padding, absence, cuts and several pictures change nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_llava, tiny_picture
from tga.alignment.tga import TGA
from tga.data.collate import Batch, Collator
from tga.data.sample import Sample, Turn
from tga.errors import UserError
from tga.training.module import AlignmentModule
from tga.vlm.families import family_of
from tga.vlm.freezing import freeze

LAYERS = (0, 1, 3)


def module_of(**options: Any) -> AlignmentModule:
    model, _ = tiny_llava()
    freeze(model, family_of(model), ["projector"])
    return AlignmentModule(model, family_of(model), [TGA(LAYERS)], learning_rate=1e-3, total_steps=10, **options)


def picture(directory: Path, seed: int) -> Path:
    path = directory / f"{seed}.png"
    tiny_picture(seed).save(path)
    return path


def sample(
    directory: Path, seed: int, caption: str = "A red car.", neighbours: tuple[str, ...] = ("A cup.",)
) -> Sample:
    turns = (Turn("user", "Describe the picture."), Turn("assistant", caption))
    return Sample(str(seed), (picture(directory, seed),), turns, caption, neighbours)


def collate(samples: list[Sample], *, max_length: int = 200, retrieved: str = "loss") -> Batch:
    return Collator(tiny_llava()[1], "vicuna_v1", image_tokens=4, retrieved=retrieved, max_length=max_length)(samples)


def gradient(module: AlignmentModule, batch: Batch, names: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], Tensor]:
    """The step's losses (or those named) and the projector's gradient as one vector, float32."""
    module.zero_grad()
    losses = module.step_losses(batch, 0.0)
    torch.stack([value for name, value in losses.items() if not names or name in names]).sum().backward()
    parts = [p.grad.flatten() for p in module.model.model.multi_modal_projector.parameters() if p.grad is not None]
    return {name: value.detach() for name, value in losses.items()}, torch.cat(parts).clone()


def padded_left(batch: Batch) -> Batch:
    """The same batch with the padding of its prompts and texts on the other side."""

    def move(values: Tensor, attention: Tensor) -> Tensor:
        rows = [torch.cat([row[~kept], row[kept]]) for row, kept in zip(values, attention.bool(), strict=True)]
        return torch.stack(rows)

    prompts = ("input_ids", "labels", "image_mask", "retrieved_mask", "attention_mask")
    moved = {name: move(getattr(batch, name), batch.attention_mask) for name in prompts}
    for text in ("caption", "retrieved"):
        attention = getattr(batch, f"{text}_attention_mask")
        span = "caption_mask" if text == "caption" else "retrieved_text_mask"
        for name in (f"{text}_ids", span, f"{text}_attention_mask"):
            moved[name] = move(getattr(batch, name), attention)
    return dataclasses.replace(batch, **moved)


def test_left_and_right_padding_give_the_same_losses_and_gradient(tmp_path: Path) -> None:
    batch = collate([sample(tmp_path, 1), sample(tmp_path, 2, "Two green trees beside a small house.", ("A dog.",))])
    assert int(batch.attention_mask.min()) == 0 and int(batch.caption_attention_mask.min()) == 0
    module, left = module_of(), padded_left(batch)
    assert int(left.attention_mask[:, 0].min()) == 0 and int(left.attention_mask[:, -1].min()) == 1
    right_losses, right = gradient(module, batch)
    left_losses, other = gradient(module, left)
    for name, value in right_losses.items():
        torch.testing.assert_close(left_losses[name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other, right, rtol=1e-4, atol=1e-6)


def test_text_only_samples_change_nothing_of_the_guide(tmp_path: Path) -> None:
    guide = ("tga_pair", "tga_rank")
    pictures = [sample(tmp_path, 1), sample(tmp_path, 2, "Two trees.")]
    text = Sample("t", (), (Turn("user", "How many cats?"), Turn("assistant", "Two of them, on the blue chair.")), None)
    module = module_of()
    alone_losses, alone = gradient(module, collate(pictures), guide)
    mixed_losses, mixed = gradient(module, collate([pictures[0], text, pictures[1]]), guide)
    for name in guide:
        torch.testing.assert_close(mixed_losses[name], alone_losses[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed, alone, rtol=1e-4, atol=1e-6)
    _, nothing = gradient(module, collate([text]))
    assert nothing.shape == alone.shape and not nothing.any()  # a zero gradient, which many processes wait for


def test_several_pictures_of_a_sample_are_pooled_together(tmp_path: Path) -> None:
    turns = (Turn("user", "<image> and <image>: what is the same?"), Turn("assistant", "Both are noise."))
    two = Sample("two", (picture(tmp_path, 1), picture(tmp_path, 2)), turns, "Both are noise.", ("A cup.",))
    batch = collate([two, sample(tmp_path, 3)])
    assert batch.image_mask.sum(1).tolist() == [8, 4]
    assert batch.pixel_values is not None and len(batch.pixel_values) == 3
    module = module_of()
    _, both = gradient(module, batch, ("tga_pair",))
    assert both.norm() > 1e-6
    alone, _ = gradient(module, collate([two]))
    third, _ = gradient(module, collate([sample(tmp_path, 3)]))
    together, _ = gradient(module, batch)
    torch.testing.assert_close(together["tga_pair"], (alone["tga_pair"] + third["tga_pair"]) / 2, rtol=1e-5, atol=1e-6)


def test_a_cut_never_goes_through_a_picture(tmp_path: Path) -> None:
    turns = (Turn("user", "<image> and <image>?"), Turn("assistant", "Noise."))
    two = Sample("two", (picture(tmp_path, 1), picture(tmp_path, 2)), turns, "Noise.")
    whole = collate([two])
    end = int(whole.image_mask[0].nonzero().max()) + 1
    losses, _ = gradient(module_of(), collate([two], max_length=end + 1))
    assert all(torch.isfinite(value) for value in losses.values())
    for length in (end - 1, end - 5):
        with pytest.raises(UserError, match="sample two: .*image ends at"):
            collate([two], max_length=length)


def test_an_answer_that_is_cut_off_leaves_a_zero_lm_loss(tmp_path: Path) -> None:
    batch = collate([sample(tmp_path, 1)])
    first = int((batch.labels[0] != -100).nonzero().min())
    losses, found = gradient(module_of(), collate([sample(tmp_path, 1)], max_length=first))
    assert losses["lm"] == 0 and found.norm() > 1e-6  # of the guide


def test_a_caption_of_one_token(tmp_path: Path) -> None:
    batch = collate([sample(tmp_path, 1, "a"), sample(tmp_path, 2)])
    assert batch.caption_mask.sum(1).tolist()[0] == 1
    losses, found = gradient(module_of(), batch)
    assert all(torch.isfinite(value) for value in losses.values()) and found.isfinite().all()
    alone, _ = gradient(module_of(), collate([sample(tmp_path, 1, "a")]))
    other, _ = gradient(module_of(), collate([sample(tmp_path, 2)]))
    torch.testing.assert_close(losses["tga_pair"], (alone["tga_pair"] + other["tga_pair"]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("retrieved", ["loss", "prompt", "none"])
def test_a_batch_without_neighbours_has_the_pair_term_alone(retrieved: str, tmp_path: Path) -> None:
    samples = [sample(tmp_path, seed, neighbours=()) for seed in (1, 2)]
    losses, found = gradient(module_of(), collate(samples, retrieved=retrieved))
    assert losses["tga_rank"] == 0 and losses["tga_pair"] != 0 and found.norm() > 1e-6
    one = [sample(tmp_path, 1, neighbours=()), sample(tmp_path, 2)]
    some, _ = gradient(module_of(), collate(one, retrieved=retrieved))
    assert (some["tga_rank"] != 0) == (retrieved != "none")


def test_bf16_keeps_the_direction_of_the_gradient(tmp_path: Path) -> None:
    """Frozen weights in bf16, float32 projector, autocast, as a run does it: two to three digits are left."""
    batch = collate([sample(tmp_path, seed, caption) for seed, caption in ((1, "A red car."), (2, "Two trees."))])
    full_losses, full = gradient(module_of(), batch)
    module = module_of()
    module.model.to(torch.bfloat16)
    module.model.model.multi_modal_projector.float()
    with torch.autocast("cpu", torch.bfloat16):
        half_losses, half = gradient(module, batch)
    assert half.dtype == torch.float32
    for name, value in full_losses.items():
        torch.testing.assert_close(half_losses[name].float(), value, rtol=0.03, atol=0.03)
    assert torch.nn.functional.cosine_similarity(half, full, dim=0) > 0.99


@pytest.mark.parametrize("parts", [["projector"], ["projector", "language_model"]])
def test_gradient_checkpointing_gives_the_same_gradients(parts: list[str], tmp_path: Path) -> None:
    """In float32 on one thread the second forward pass repeats the first: equal up to the order of a few sums."""
    batch = collate([sample(tmp_path, 1), sample(tmp_path, 2, "Two trees.")])
    found = []
    for checkpointing in (False, True):
        module = module_of()
        freeze(module.model, module.family, parts)
        if checkpointing:
            module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            module.model.model.language_model.train()
            assert module.model.model.language_model.gradient_checkpointing
        gradient(module, batch)
        found.append({name: p.grad for name, p in module.model.named_parameters() if p.grad is not None})
    plain, spared = found
    assert set(plain) == set(spared) and len(plain) >= 4
    for name, value in plain.items():
        torch.testing.assert_close(spared[name], value, rtol=1e-5, atol=1e-7)
