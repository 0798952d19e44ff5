"""One spelling of an exported directory that every transformers from 4.57 on, vLLM and LLaVA-hf's readers understand.

transformers writes names as its own version has them, and reads those of older versions; older versions do not read
newer names, and what they do not find they draw at random. So the older spelling is written where there are two:

| what | transformers of today writes | written here |
|---|---|---|
| weights of a CLIP or SigLIP tower | `vision_tower.embeddings...` | `vision_tower.vision_model.embeddings...` |
| rotary base and scaling | `rope_parameters` | that, and `rope_theta`, `rope_scaling` beside it |
| class of a fast tokenizer | `TokenizersBackend` | `PreTrainedTokenizerFast` |
| further special tokens | `extra_special_tokens` | `additional_special_tokens` |
| image processor on torchvision | `CLIPImageProcessor` | `CLIPImageProcessorFast` |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

WEIGHTS = "*.safetensors"
INDEX = "model.safetensors.index.json"
# Towers whose modules lay under `vision_model` in the older versions.
NESTED_TOWERS = ("clip_vision_model", "siglip_vision_model")
FLAT_TOWER = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")
# Older versions have a slower class under the plain name, which resizes by other arithmetic.
ON_TORCHVISION = {
    "CLIPImageProcessor": "CLIPImageProcessorFast",
    "LlavaNextImageProcessor": "LlavaNextImageProcessorFast",
}


def spell_for_all(directory: Path) -> None:
    """Rewrite the files of a model and processor that `save_pretrained` wrote to `directory` in the older spelling."""
    config = _change(directory / "config.json", _with_older_rope)
    if config.get("vision_config", {}).get("model_type") in NESTED_TOWERS:
        _rename_weights(directory, lambda name: FLAT_TOWER.sub(r"\1vision_model.", name))
    for file in directory.rglob("tokenizer_config.json"):  # InstructBLIP has a second tokenizer, in a folder of its own
        _change(file, _older_tokenizer)
    if (file := directory / "processor_config.json").is_file():
        _change(file, _older_image_processor)


def _change(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    changed = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return changed


def _with_older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings of the language model beside `rope_parameters`, where older versions look for them."""
    text = config.get("text_config", config)
    rope = text.get("rope_parameters") or {}
    if "rope_theta" in rope:  # not so where each kind of layer has settings of its own
        text["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        if scaling.get("rope_type", "default") != "default" or len(scaling) > 1:
            text["rope_scaling"] = scaling
    return config


def _older_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(further := config.get("extra_special_tokens"), list):
        del config["extra_special_tokens"]
        if further:
            config["additional_special_tokens"] = further
    return config


def _older_image_processor(config: dict[str, Any]) -> dict[str, Any]:
    images = config.get("image_processor", {})
    kind = images.get("image_processor_type")
    if kind in ON_TORCHVISION:
        images["image_processor_type"] = ON_TORCHVISION[kind]
    return config


def _rename_weights(directory: Path, renamed: Callable[[str], str]) -> None:
    """Rename tensors in the shards that hold some to be renamed, and in the index of the shards."""
    for file in sorted(directory.glob(WEIGHTS)):
        with safe_open(file, framework="pt") as shard:
            names, metadata = list(shard.keys()), shard.metadata()
        if all(renamed(name) == name for name in names):
            continue
        tensors = {renamed(name): tensor for name, tensor in load_file(file).items()}
        # A file of its own: the tensors are views of the old one.
        fresh = file.with_name(f"{file.stem}.renamed")
        save_file(tensors, fresh, metadata=metadata)
        del tensors
        fresh.replace(file)
    if (index := directory / INDEX).is_file():
        _change(
            index,
            lambda content: {**content, "weight_map": {renamed(k): v for k, v in content["weight_map"].items()}},
        )
