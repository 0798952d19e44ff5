"""A trained projector from a file: LLaVA's `mm_projector.bin`, or the projector inside a Hugging Face directory.

LLaVA names the linear layers by their places in an `nn.Sequential`; the names on the right are those of the family
(`Family.projector_layers`), here of LLaVA-1.5:

    LLaVA                          in the model
    model.mm_projector.0.weight    multi_modal_projector.linear_1.weight  [width, vision_width]
    model.mm_projector.0.bias      multi_modal_projector.linear_1.bias    [width]
    model.mm_projector.2.weight    multi_modal_projector.linear_2.weight  [width, width]
    model.mm_projector.2.bias      multi_modal_projector.linear_2.bias    [width]

All names, shapes and, where a config.json lies beside the file, the settings of the vision features are compared
before anything is loaded: the same shapes fed from another layer of the vision tower would load and see nothing. So
would one that was trained for another language model (`tga.vlm.projector_origin`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tga.errors import UserError
from tga.vlm.families import Family, component
from tga.vlm.projector_origin import compare_origin

PROJECTOR_FILE = "mm_projector.bin"
PREFIX = "model.mm_projector."
SELECT_FEATURE = {"default": "patch", "full": "cls_patch"}
REMEDY = f"model.projector=PATH of a {PROJECTOR_FILE}, or of a Hugging Face directory"
_LLAVA = re.compile(r"(?:^|\.)mm_projector\.")


def llava_names(family: Family) -> dict[str, str]:
    """LLaVA's name of each tensor of the projector -> its own name, relative to the projector."""
    layers = family.projector_layers
    places = [""] if layers == ("",) else [f"{2 * number}." for number in range(len(layers))]
    return {
        f"{PREFIX}{place}{part}": f"{layer}.{part}" if layer else part
        for place, layer in zip(places, layers, strict=True)
        for part in ("weight", "bias")
    }


def read_projector(path: str | Path, family: Family) -> dict[str, Tensor]:
    """The projector's tensors in a file or directory, under the names they have there, the rest left unread.

    Args:
        path: a `.bin` or `.ckpt` file of plain tensors (read with `weights_only=True`: it may hold nothing that runs),
            a `.safetensors` file, or a directory with a `mm_projector.bin` or with the weights of a whole model.
        family: of the model that the projector is for.

    Raises:
        UserError: no such file, one that holds something else, or none of the projector's tensors.
    """
    place = Path(path)
    found: dict[str, Tensor] = {}
    for file in projector_files(place):
        if file.suffix == ".safetensors":
            found |= _from_safetensors(file, family)
        else:
            found |= {name: value for name, value in _from_torch(file).items() if _is_projector(name, family)}
    if not found:
        raise UserError(
            "The file holds no projector",
            given=place,
            allowed=f"tensors named {PREFIX}* or {_tail(family)}.*",
            remedy=REMEDY,
        )
    return found


def import_projector(model: PreTrainedModel, family: Family, path: str | Path) -> None:
    """Load a projector into `model`, in place; values are converted to the dtype of the model's projector.

    Raises:
        UserError: any name, shape or setting differs. The message shows both sides, and the model is as it was.
    """
    component(model, family.projector).load_state_dict(fitting_projector(model, family, path), strict=True)


def fitting_projector(model: PreTrainedModel, family: Family, path: str | Path) -> dict[str, Tensor]:
    """The projector's tensors under their names in the projector of `model`, which may lie on the meta device.

    Raises:
        UserError: any name, shape or setting differs. The message shows both sides.
    """
    given = read_projector(path, family)
    own = component(model, family.projector).state_dict()
    from_llava = any(_LLAVA.search(name) for name in given)
    _compare_settings(model.config, Path(path))
    if from_llava:
        expected = {name: own[inner] for name, inner in llava_names(family).items() if inner in own}
        expected |= {inner: value for inner, value in own.items() if inner not in llava_names(family).values()}
        state = {PREFIX + _LLAVA.split(name, 1)[-1]: value for name, value in given.items()}
        inner_names = llava_names(family)
    else:
        expected = own
        state = {_inner(name, family): value for name, value in given.items()}
        inner_names = {name: name for name in own}
    if shapes(state) != shapes(expected):
        raise UserError(
            "The projector file does not fit this model, nothing was loaded",
            given=f"{path}: {_listed(state)}",
            allowed=f"the model's {_listed(expected)}",
            remedy="name the language model and the vision tower that the projector was trained for",
        )
    compare_origin(model.config, Path(path))
    return {inner_names[name]: value for name, value in state.items()}


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def projector_files(place: Path) -> list[Path]:
    """The files to read: the projector's own, or all that the weights of a whole model are spread over.

    Raises:
        UserError: there are none.
    """
    if place.is_file():
        return [place]
    if (place / PROJECTOR_FILE).is_file():
        return [place / PROJECTOR_FILE]
    files = sorted(place.glob("*.safetensors"))
    if files:
        return files
    raise UserError(
        "There is no projector file",
        given=place,
        allowed=f"LLaVA's {PROJECTOR_FILE}, or a Hugging Face directory with safetensors",
        remedy=REMEDY,
    )


def _from_safetensors(file: Path, family: Family) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if _is_projector(name, family)}
    except (SafetensorError, OSError) as error:
        raise UserError(f"The file is no safetensors file ({error})", given=file, remedy=REMEDY) from error


def _from_torch(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler may raise anything over bytes that are no pickle
        problem = "This is no file of plain tensors (nothing else is loaded, as it could run code)"
        raise UserError(problem, given=file, allowed=f"LLaVA's {PROJECTOR_FILE}", remedy=REMEDY) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # a checkpoint of tga-train
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("The file holds no dictionary of tensors", given=file, remedy=REMEDY)
    return {str(name): tensor for name, tensor in state.items()}


def _tail(family: Family) -> str:
    """Where the projector is, without the outermost `model.`, which files may lack."""
    return family.projector.removeprefix("model.")


def _is_projector(name: str, family: Family) -> bool:
    return bool(_LLAVA.search(name)) or _inner(name, family) != name


def _inner(name: str, family: Family) -> str:
    """A tensor's name relative to the projector; the name itself where it is none of its tensors."""
    found = re.search(rf"(?:^|\.){re.escape(_tail(family))}\.(.+)$", name)
    return found.group(1) if found else name


def _compare_settings(config: PreTrainedConfig, path: Path) -> None:
    """Compare how the projector was fed with how `model` feeds it, where a config.json says so."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file() or not hasattr(config, "vision_feature_layer"):
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    expected = dict(_settings(config))
    differing = [key for key, value in expected.items() if key in found and found[key] != value]
    if differing:
        raise UserError(
            "The projector was trained on other vision features than this model gives, nothing was loaded",
            given=f"{file}: " + ", ".join(f"{key}={found[key]}" for key in differing),
            allowed="the model's " + ", ".join(f"{key}={expected[key]}" for key in differing),
            remedy="model.vision_feature_layer=N, model.vision_feature_select_strategy=default (patch) or full",
        )


def _settings(config: PreTrainedConfig) -> Iterator[tuple[str, Any]]:
    """What decides the projector's input and activation, under LLaVA's keys and under those of transformers."""
    strategy = config.vision_feature_select_strategy
    yield "mm_projector_type", "mlp2x_gelu"
    yield "mm_vision_select_layer", config.vision_feature_layer
    yield "mm_vision_select_feature", SELECT_FEATURE[strategy]
    yield "vision_feature_layer", config.vision_feature_layer
    yield "vision_feature_select_strategy", strategy
    yield "projector_hidden_act", config.projector_hidden_act


def _listed(state: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes(state).items())) or "nothing"
