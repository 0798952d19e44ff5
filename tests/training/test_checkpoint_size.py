"""A checkpoint of the projector stage at the widths of llava7b: its file, written by a run, and what is in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from rich.console import Console
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.tiny import tiny_llava, write_tiny_llava_json
from tga.alignment.tga import TGA
from tga.data.collate import Collator
from tga.data.llava_json import load_llava_json
from tga.training.checkpoint import read_checkpoint
from tga.training.run import fit
from tga.training.settings import TrainSettings
from tga.vlm.families import LLAVA

WIDTH, VISION_WIDTH = 4096, 1024  # of Vicuna-7B, and of CLIP ViT-L/14-336
PROJECTOR = VISION_WIDTH * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH


def wide_llava() -> LlavaForConditionalGeneration:
    """The real projector between parts of the real widths, and small otherwise: they are frozen, and not saved."""
    config = tiny_llava()[0].config
    text = LlamaConfig(
        vocab_size=config.text_config.vocab_size, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8, pad_token_id=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH, intermediate_size=8, num_hidden_layers=2, num_attention_heads=16, image_size=28,
        patch_size=14,
    )  # fmt: skip
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_index=config.image_token_id, image_seq_length=4)
    ).eval()


def test_a_checkpoint_of_llava7b_has_less_than_300_mb_with_the_optimisers_state(tmp_path: Path) -> None:
    write_tiny_llava_json(tmp_path, n=2)
    samples = load_llava_json(tmp_path / "train.json", tmp_path / "images")
    samples = [dataclasses.replace(sample, neighbours=("A cup.",)) for sample in samples]
    collator = Collator(tiny_llava()[1], "plain", image_tokens=4, retrieved="loss", max_length=128)
    settings = TrainSettings(batch_size=2, accelerator="cpu", gradient_norm_every=0)
    result = fit(
        wide_llava(), LLAVA, collator, samples, [TGA((0, 1))], settings, tmp_path / "run", train=["projector"],
        centred=True, calibration=None, hyper_parameters={"base_model": {"vlm": "x"}}, ckpt_path=None,
        console=Console(quiet=True),
    )  # fmt: skip
    trained = read_checkpoint(result.checkpoint)
    assert sum(value.numel() for value in trained.weights.values()) == PROJECTOR == result.trainable_parameters
    assert len(trained.weights) == 4 and all("multi_modal_projector" in name for name in trained.weights)
    size = result.checkpoint.stat().st_size
    assert 12 * PROJECTOR < size < 300e6  # value and two moments in float32: it holds the optimiser's state
    content = torch.load(result.checkpoint, weights_only=True, mmap=True)
    moments = content["optimizer_states"][0]["state"].values()
    assert sum(state["exp_avg"].numel() + state["exp_avg_sq"].numel() for state in moments) == 2 * PROJECTOR
