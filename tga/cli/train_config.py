"""From the config of tga-train to the values that the library takes, with one message where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from tga.alignment.layers import resolve_layers
from tga.alignment.located import LOCATED, SET_FILE, check_same_model, read_located_layers
from tga.alignment.objective import Objective
from tga.cli.common import instantiate
from tga.data.collate import RETRIEVED
from tga.errors import UserError
from tga.export.run import FORMATS
from tga.training.lora import LoraSettings
from tga.training.settings import Calibration, TrainSettings
from tga.vlm.families import Family
from tga.vlm.language_model import identify_language_model

TARGETS = ("online", "stored")
ATTENTION = ["sdpa", "eager", "flash_attention_2"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_choices(values: Mapping[str, Any]) -> None:
    """Refuse words that are no option, and a method without its data, before anything is loaded.

    Raises:
        UserError: the first such mistake.
    """
    options: list[tuple[str, Any, Sequence[Any]]] = [
        ("model.dtype", values["model"]["dtype"], list(DTYPES)),
        ("model.attn_implementation", values["model"]["attn_implementation"], ATTENTION),
        ("alignment.retrieved", values["alignment"]["retrieved"], RETRIEVED),
        ("alignment.targets", values["alignment"].get("targets", "online"), TARGETS),
        ("export", values["export"], [*FORMATS, None]),
    ]
    for name, given, allowed in options:
        if given not in allowed:
            listed = ", ".join("null" if option is None else str(option) for option in allowed)
            raise UserError(f"{name} has no such option", given=given, allowed=listed, remedy=f"{name}=...")
    if values["model"]["attn_implementation"] == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "FlashAttention is not installed, or there is no GPU for it",
            given="model.attn_implementation=flash_attention_2",
            remedy="pip install flash-attn, or model.attn_implementation=sdpa, which has the same kernels in torch",
        )
    data, alignment = values["data"], values["alignment"]
    if alignment.get("targets") == "stored":
        _check_stored_targets(values)
    if alignment.get("target", "caption") != "caption" and alignment["retrieved"] == "none":
        given = f"alignment.target={alignment['target']}, alignment.retrieved=none"
        remedy = "alignment.retrieved=loss, or alignment.target=caption"
        raise UserError("The target is a retrieved text, and none is used", given=given, remedy=remedy)
    if data["captions"] is not None and data["index_dir"] is None:
        raise UserError("data.captions needs a place for its index", remedy="data.index_dir=DIRECTORY")
    if values["alignment"]["retrieved"] != "none" and data["captions"] is None and data["neighbours"] is None:
        remedy = "data.captions=PATH data.index_dir=DIRECTORY, or data.neighbours=PATH, or alignment.retrieved=none"
        raise UserError(
            "This method takes retrieved texts, and there is nowhere to take them from",
            given=f"alignment={values['alignment']['name']}, retrieved={values['alignment']['retrieved']}",
            remedy=remedy,
        )


def _check_stored_targets(values: Mapping[str, Any]) -> None:
    """UserError where stored text targets have no place, or would not be those of the language model."""
    if values["data"]["targets_dir"] is None:
        raise UserError("Stored text targets need a place", remedy="data.targets_dir=DIRECTORY")
    model = values["model"]
    if "language_model" in model["train"] or model.get("lora") is not None:
        raise UserError(
            "Stored text targets hold for a frozen language model, and here it trains",
            given=f"model.train={model['train']}, model.lora={model.get('lora')}",
            remedy="alignment.targets=online",
        )


def train_settings(training: Mapping[str, Any]) -> TrainSettings:
    """The group `training` as settings; UserError for a key or value that they do not have."""
    _check_keys("training", training, set(TrainSettings.__dataclass_fields__), required=set())
    return TrainSettings(**training)


def projector_calibration(calibration: Mapping[str, Any] | None) -> Calibration | None:
    """`model.calibration`, None where the projector starts at random; UserError for missing or unknown keys."""
    if calibration is None:
        return None
    known = set(Calibration.__dataclass_fields__)
    _check_keys("model.calibration", calibration, known, required=known - {"images"})
    return Calibration(**calibration)


def lora_settings(lora: Mapping[str, Any] | None) -> LoraSettings | None:
    """`model.lora`, None where no adapters train; UserError for unknown keys."""
    if lora is None:
        return None
    _check_keys("model.lora", lora, set(LoraSettings.__dataclass_fields__), required=set())
    return LoraSettings(**lora)


def _check_keys(group: str, values: Mapping[str, Any], known: set[str], *, required: set[str]) -> None:
    if set(values) - known or required - set(values):
        problem, allowed = f"{group} does not have the keys it takes", sorted(known)
        raise UserError(problem, given=sorted(values), allowed=allowed, remedy=f"{group}.KEY=VALUE")


def with_located_layers(alignment: Mapping[str, Any]) -> dict[str, Any]:
    """An alignment config with the numbers of its `layers_file` where it says `located`.

    Raises:
        UserError: `located` without a file, a file without `located`, or one that cannot be read.
    """
    path = alignment.get("layers_file")
    if alignment.get("layers") != LOCATED:
        if path is not None:
            raise UserError(
                "A file of located layers, and other layers beside it",
                given=f"alignment.layers={alignment.get('layers')}, alignment.layers_file={path}",
                remedy="alignment.layers=located, or alignment.layers_file=null",
            )
        return dict(alignment)
    if path is None:
        problem, allowed = "alignment.layers=located without the file that says where", "alignment.layers_file=PATH"
        remedy = f"{SET_FILE} (of alignment=tga_located; +alignment.layers_file=... with another method)"
        raise UserError(problem, allowed=allowed, remedy=f"{remedy}; or name them: alignment.layers=[0,1,2]")
    layers = list(read_located_layers(path).layers)
    objectives = {
        name: {**target, "layers": layers} if target.get("layers") == LOCATED else target
        for name, target in alignment["objectives"].items()
    }
    return {**alignment, "layers": layers, "objectives": objectives}


def check_located_layers(alignment: Mapping[str, Any], model: Any, family: Family) -> None:
    """Refuse layers that were located in another language model than that of `model`."""
    if (path := alignment.get("layers_file")) is not None:
        check_same_model(read_located_layers(path), identify_language_model(model, family), path)


def build_objectives(alignment: Mapping[str, Any], layers: int) -> list[Objective]:
    """The objectives of an alignment config; their layer numbers are resolved against the `layers` of the model.

    Raises:
        UserError: layers outside of 0..L, or a target that may not be used.
    """
    made = []
    for target in alignment["objectives"].values():
        resolved = {"layers": resolve_layers(target["layers"], layers)} if "layers" in target else {}
        made.append(instantiate({**target, **resolved}))
    return made
