"""The same vision tower, read by open_clip and by transformers, gives the same hidden states."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, CLIPVisionModel

from tga.mini.convert import clip_vision_directory, clip_vision_model
from tga.mini.weights import restore_retriever

VISION = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2, "pool_type": "avg"}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}


def random_retriever(directory: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model = open_clip.model.CLIP(16, dict(VISION), dict(TEXT)).eval()
    for parameter in model.parameters():  # biases are zero and norms one at the start: a wrong place would not show
        torch.nn.init.normal_(parameter, std=0.2)
    about = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (directory / "open_clip_config.json").write_text(json.dumps(about))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "open_clip_model.safetensors")
    return model


def open_clip_states(model: torch.nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Input of the first block, then the output of every block, [batch, 1 + patches, width] each."""
    states = [model.visual._embeds(pixels)]
    for block in model.visual.transformer.resblocks:
        states.append(block(states[-1]))
    return states


@torch.no_grad()
def test_hidden_states_are_equal(tmp_path: Path):
    model = random_retriever(tmp_path)
    pixels = torch.randn(3, 3, 32, 32)
    ours = clip_vision_model(tmp_path)(pixel_values=pixels, output_hidden_states=True).hidden_states
    theirs = open_clip_states(model, pixels)
    assert len(ours) == len(theirs) == 3
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_written_directory_loads_with_plain_transformers(tmp_path: Path):
    random_retriever(tmp_path)
    clip_vision_directory(tmp_path, tmp_path / "tower")
    pixels = torch.randn(2, 3, 32, 32)
    loaded = CLIPVisionModel.from_pretrained(tmp_path / "tower").eval()
    torch.testing.assert_close(
        loaded(pixel_values=pixels).last_hidden_state,
        clip_vision_model(tmp_path)(pixel_values=pixels).last_hidden_state,
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tower")
    assert processor(torch.zeros(3, 32, 32, dtype=torch.uint8), return_tensors="pt").pixel_values.shape == (
        1,
        3,
        32,
        32,
    )


def test_a_missing_weight_is_an_error(tmp_path: Path):
    random_retriever(tmp_path)
    about = json.loads((tmp_path / "open_clip_config.json").read_text())
    about["model_cfg"]["vision_cfg"]["layers"] = 3
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    with pytest.raises(KeyError, match="resblocks.2"):
        clip_vision_model(tmp_path)


@torch.no_grad()
def test_the_packaged_clip_gives_equal_hidden_states_both_ways(tmp_path: Path):
    restore_retriever(tmp_path)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    pixels = torch.randn(2, 3, 64, 64)
    tower = clip_vision_model(tmp_path)
    ours = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    for mine, other in zip(ours, open_clip_states(model.eval(), pixels), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
