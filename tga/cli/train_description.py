"""What a checkpoint says of the run of tga-train that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tga.alignment.token_weights import MEAN
from tga.cli.common import config_hash
from tga.cli.data import source_of
from tga.training.base_model import BaseModel
from tga.training.lora import LoraSettings

POOLING_KEYS = ("text_pooling", "sif_a")


def hyper_parameters(
    config: DictConfig, values: Mapping[str, Any], base: BaseModel, lora: LoraSettings | None
) -> dict[str, Any]:
    """What a checkpoint says of its run: plain values only, and all that decides its numbers."""
    alignment, model, data = values["alignment"], values["model"], values["data"]
    # What plain means do not need is left out: checkpoints of before there was another pooling do not have it either.
    unsaid = {"objectives", *(POOLING_KEYS if alignment.get("text_pooling", MEAN) == MEAN else ())}
    noise = {"swapped_words": data["swapped_words"]} if data["swapped_words"] else {}
    return {
        **noise,
        "base_model": base.located(),
        "method": alignment["name"],
        "alignment": {key: value for key, value in alignment.items() if key not in unsaid},
        "objectives": alignment["objectives"],
        "lora": None if lora is None else lora.plain(),
        "model": {key: model[key] for key in ("train", "dtype", "calibration")},
        "data": Path(source_of(data).name).name,
        "template": data["template"],
        "max_length": data["max_length"],
        "neighbours_used": data["neighbours_used"],
        "retrieval": _retrieval(values) if alignment["retrieved"] != "none" else None,
        "config_hash": config_hash(config),
    }


def _retrieval(values: Mapping[str, Any]) -> dict[str, Any]:
    """Where the retrieved texts come from: files by their names alone, so that a data set may move."""
    data, encoder = values["data"], values["encoder"]
    if data["captions"] is None:
        return {"neighbours": Path(data["neighbours"]).name}
    captions = [data["captions"]] if isinstance(data["captions"], str) else data["captions"]
    made_of = {"encoder": Path(str(encoder["name"])).name, "pretrained": encoder["pretrained"]}
    return {"captions": [Path(path).name for path in captions], "k": data["neighbours_k"], **made_of}
