"""Which language model and vision tower a projector was trained for, where its file or what lies beside it says so.

A projector of the same two shapes from another language model (Mistral's and Vicuna's are both 4096 wide) would load
and mean nothing. So the architectures are compared: those of a config.json beside the file, LLaVA's or that of a
Hugging Face directory, or those of the base models that a checkpoint of `tga-train` names. Their weights are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from tga.errors import UserError

# What tells one architecture from another; compared where both sides have it.
TEXT = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
VISION = ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size", "depth")
CONFIG = "config.json"


def compare_origin(config: PreTrainedConfig, path: Path) -> None:
    """Compare the parts that a projector file was trained for with those of the model that it shall go into.

    Args:
        config: of the model.
        path: of the projector: a file, or a directory.

    Raises:
        UserError: another language model or vision tower. The message shows both sides.
    """
    text, vision = origin(path)
    own: Any = config
    differing = _differing("language model", text, own.get_text_config(), TEXT)
    differing += _differing("vision tower", vision, getattr(own, "vision_config", None), VISION)
    if differing:
        raise UserError(
            "The projector was trained for another language model or vision tower, nothing was loaded",
            given=f"{path}: " + ", ".join(f"{name}={theirs}" for name, theirs, _ in differing),
            allowed="the model's " + ", ".join(f"{name}={ours}" for name, _, ours in differing),
            remedy="model.llm and model.vision_tower (or model.vlm) that the projector was trained for",
        )


def origin(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The configs of the language model and of the vision tower; empty where nothing tells them."""
    if path.suffix == ".ckpt":
        return _of_base(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    found = _read(path if path.is_dir() else path.parent)
    return found.get("text_config") or found, found.get("vision_config") or {}


def _of_base(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """By the directories that a checkpoint names; what is a hub id, or no longer there, tells nothing."""
    base = content.get("hyper_parameters", {}).get("base_model", {})
    if base.get("vlm") is not None:
        found = _read(Path(base["vlm"]))
        return found.get("text_config") or {}, found.get("vision_config") or {}
    text, vision = (_read(Path(base[key])) if base.get(key) else {} for key in ("llm", "vision_tower"))
    return text, vision.get("vision_config") or vision


def _read(directory: Path) -> Mapping[str, Any]:
    file = directory / CONFIG
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _differing(part: str, found: Mapping[str, Any], own: Any, keys: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    return [
        (f"{part} {key}", found[key], getattr(own, key))
        for key in keys
        if found.get(key) is not None and getattr(own, key, None) is not None and found[key] != getattr(own, key)
    ]
