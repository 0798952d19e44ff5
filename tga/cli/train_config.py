"""From the config of tga-train to the values that the library takes, with one message where they do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from tga.alignment.layers import resolve_layers
from tga.alignment.located import LOCATED, SET_FILE, check_same_model, read_located_layers
from tga.alignment.objective import Objective
from tga.cli.common import said_on_the_command_line
from tga.errors import UserError
from tga.registry import OBJECTIVES, made, names, registered
from tga.training.base_model import BaseModel
from tga.training.distributed import expected_processes
from tga.training.lora import LoraSettings
from tga.training.settings import Calibration, TrainSettings, divided_batch
from tga.vlm.families import Family
from tga.vlm.language_model import identify_language_model

OF_AN_OBJECTIVE = ("layers", "token_layers", "frozen_language_model_only", "figure_names", "losses", "figures")
BASE_FIELDS = tuple(field.name for field in dataclasses.fields(BaseModel))
OWN_KEYS = ("processes", "global_batch_size")  # of the group `training`: what they decide stands in the settings
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def train_settings(training: Mapping[str, Any], processes: int | None = None) -> TrainSettings:
    """The group `training` as settings; UserError for a key or value that they do not have.

    processes: those of the run; None: that were launched, or would be started.
    """
    _check_keys("training", training, {*TrainSettings.__dataclass_fields__, *OWN_KEYS}, required=set())
    values = {key: value for key, value in training.items() if key not in OWN_KEYS}
    if processes is None:
        processes = expected_processes(training.get("processes"))
    values["batch_size"], values["accumulate_batches"] = divided_batch(
        training.get("global_batch_size"),
        training.get("batch_size", TrainSettings.batch_size),
        training.get("accumulate_batches", TrainSettings.accumulate_batches),
        processes,
    )
    return TrainSettings(**values)


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
        UserError: layers outside of 0..L; an objective that is not registered (`tga.registry`), or that does not take
            its keys.
    """
    return [
        _objective(f"alignment.objectives.{name}", settings, layers)
        for name, settings in alignment["objectives"].items()
    ]


def _objective(where: str, settings: Any, layers: int) -> Objective:
    if not isinstance(settings, Mapping) or "kind" not in settings:
        raise UserError(
            "An objective does not say which one it is",
            given=f"{where}: {settings}",
            allowed=f"kind: one of {', '.join(names(OBJECTIVES))}",
            remedy=f"{where}.kind=NAME",
        )
    keys = {key: value for key, value in settings.items() if key != "kind"}
    if "layers" in keys:
        keys["layers"] = resolve_layers(keys["layers"], layers)
    factory = registered(
        OBJECTIVES, settings["kind"], key=f"{where}.kind", own=said_on_the_command_line("alignment.objectives")
    )
    try:
        objective = made(factory, keys, key=where)
    except (TypeError, ValueError) as error:  # a constructor does no more than look at its arguments
        raise UserError(
            f"{where} has a value that it does not take ({error})",
            given=", ".join(f"{name}={value}" for name, value in keys.items()),
            remedy=f"{where}.KEY=VALUE",
        ) from error
    if lacking := [name for name in OF_AN_OBJECTIVE if not hasattr(objective, name)]:
        raise UserError(
            f"This is no objective: it lacks {', '.join(lacking)}",
            given=f"{where}.kind={settings['kind']}",
            allowed="what tga.alignment.objective.Objective describes",
            remedy="name a class of that protocol",
        )
    return objective
