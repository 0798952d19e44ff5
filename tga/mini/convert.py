"""The vision tower of an open_clip ViT as transformers' CLIPVisionModel, weight for weight.

Only renames: open_clip keeps query, key and value in one matrix, transformers in three. The hidden states of both are
equal (tested to 1e-5); transformers' pooled output means nothing for a tower that pools by the average.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def vision_config(cfg: dict[str, int]) -> CLIPVisionConfig:
    """The transformers configuration of an open_clip `vision_cfg` (GELU, as open_clip's default)."""
    return CLIPVisionConfig(
        hidden_size=cfg["width"],
        intermediate_size=4 * cfg["width"],
        num_hidden_layers=cfg["layers"],
        num_attention_heads=cfg["width"] // cfg["head_width"],
        image_size=cfg["image_size"],
        patch_size=cfg["patch_size"],
        hidden_act="gelu",
    )


def vision_state(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """open_clip's `visual.*` weights under transformers' names (those of CLIPVisionModel's inner module)."""
    renamed = {
        "embeddings.class_embedding": state["visual.class_embedding"],
        "embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    for theirs, ours in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        for kind in ("weight", "bias"):
            renamed[f"{ours}.{kind}"] = state[f"visual.{theirs}.{kind}"]
    for layer in range(layers):
        theirs, ours = f"visual.transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for name, new in _BLOCK.items():
                renamed[f"{ours}.{new}.{kind}"] = state[f"{theirs}.{name}.{kind}"]
            parts = state[f"{theirs}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                renamed[f"{ours}.self_attn.{name}.{kind}"] = part.clone()
    return renamed


def clip_vision_model(retriever: Path) -> CLIPVisionModel:
    """The vision tower of an open_clip local directory.

    Raises:
        RuntimeError: where a weight is missing or has another shape (loading is strict).
    """
    about = json.loads((retriever / "open_clip_config.json").read_text())
    cfg = about["model_cfg"]["vision_cfg"]
    model = CLIPVisionModel(vision_config(cfg))
    state = vision_state(load_file(retriever / "open_clip_model.safetensors"), cfg["layers"])
    inner = getattr(model, "vision_model", model)
    inner.load_state_dict({k: v.to(torch.float32) for k, v in state.items()}, strict=True)
    return model.eval()


def clip_vision_directory(retriever: Path, out: Path) -> None:
    """Write the vision tower and its image processor as a transformers directory."""
    clip_vision_model(retriever).save_pretrained(out)
    about = json.loads((retriever / "open_clip_config.json").read_text())
    size, preprocessing = about["model_cfg"]["vision_cfg"]["image_size"], about["preprocess_cfg"]
    CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=preprocessing["mean"],
        image_std=preprocessing["std"],
    ).save_pretrained(out)
