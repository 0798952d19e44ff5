"""CMRM vectors in a file: one float32 tensor `layer_<l>` [width] for each layer, with where they come from.

The file is safetensors, so that a user without tga applies it (examples/apply_cmrm_vectors.py). Its metadata names the
model by a sample of its weights, the anchors by their hash, and the options; `alpha` is the strength that a sweep
has chosen, empty before one. Vectors mean nothing in another model, so loading them for one compares first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tga._version import __version__
from tga.errors import UserError
from tga.files import atomic_path
from tga.vlm.families import Family, num_layers
from tga.vlm.fingerprint import model_sample, same_weights, short_name

FORMAT = "tga-cmrm-2"
IDENTITY = ("model_type", "decoder_layers", "width")
MAKE = "make vectors for this model with tga-steer, or steering.vectors=PATH of the right ones"


@dataclass(frozen=True)
class Vectors:
    """Shifts by layer and where they come from.

    Attributes:
        shifts: layer in 1..L -> `[width]` float32.
        model: weights, model_type, decoder layers and width of the model they are of, and the path it was given by.
        origin: anchors, their hash and number, picture, direction, version: what was asked for, as texts.
        alpha: the chosen strength; None before a sweep.
        rule: by which rule it was chosen.
    """

    shifts: dict[int, Tensor]
    model: Mapping[str, str]
    origin: Mapping[str, str] = field(default_factory=dict)
    alpha: float | None = None
    rule: str = ""


def describe_model(model: Any, family: Family, name: str = "") -> dict[str, str]:
    """What tells this model from another; `name` is the path it was loaded from, for people."""
    return {
        "weights": model_sample(model, family),
        "model_type": str(model.config.model_type),
        "decoder_layers": str(num_layers(model, family)),
        "width": str(model.config.get_text_config().hidden_size),
        "name": name,
    }


def save_vectors(path: str | Path, vectors: Vectors) -> Path:
    """Write the vectors, complete or not at all, in place of an older file."""
    metadata = {
        "format": FORMAT,
        "tga_version": __version__,
        "model": json.dumps(dict(vectors.model)),
        "origin": json.dumps(dict(vectors.origin)),
        "alpha": "" if vectors.alpha is None else repr(vectors.alpha),
        "rule": vectors.rule,
    }
    tensors = {f"layer_{layer}": shift.detach().cpu().float().contiguous() for layer, shift in vectors.shifts.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return Path(path)


def read_vectors(path: str | Path) -> Vectors:
    """The vectors of a file, whatever model they are of.

    Raises:
        UserError: there is no such file, or it is not one of tga-steer.
    """
    if not Path(path).is_file():
        raise UserError("There is no file of steering vectors", given=path, remedy="steering.vectors=PATH")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except SafetensorError as error:
        problem = f"The steering vectors cannot be read ({error})"
        raise UserError(problem, given=path, remedy="steering.vectors=PATH") from error
    if metadata.get("format") != FORMAT:
        given = f"{path} of format {metadata.get('format')!r}"
        raise UserError("Not a file of steering vectors", given=given, allowed=repr(FORMAT), remedy=MAKE)
    return Vectors(
        shifts={int(name.removeprefix("layer_")): tensor for name, tensor in tensors.items()},
        model=json.loads(metadata["model"]),
        origin=json.loads(metadata["origin"]),
        alpha=float(metadata["alpha"]) if metadata["alpha"] else None,
        rule=metadata["rule"],
    )


def load_vectors(path: str | Path, model: Any, family: Family) -> Vectors:
    """The vectors of a file for this very model.

    Raises:
        UserError: as `read_vectors`, or the vectors are of another model; the message shows both.
    """
    vectors = read_vectors(path)
    ours = describe_model(model, family)
    theirs = vectors.model
    different = [key for key in IDENTITY if theirs[key] != ours[key]]
    if not same_weights(theirs["weights"], ours["weights"]):
        different.append("weights")
        theirs, ours = ({**one, "weights": short_name(one["weights"])} for one in (theirs, ours))
    if different:
        raise UserError(
            f"The steering vectors {path} are of another model ({', '.join(different)} differ)",
            given=f"vectors of {theirs['name']}: " + ", ".join(f"{key} {theirs[key]}" for key in different),
            allowed="this model: " + ", ".join(f"{key} {ours[key]}" for key in different),
            remedy=MAKE,
        )
    return vectors
