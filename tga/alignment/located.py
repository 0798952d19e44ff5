"""The file `layers.json`: where safety activates in a language model; `tga-locate` writes it, `tga-train` reads it.

    alignment.layers=located alignment.layers_file=PATH/layers.json

takes the layers of the file, after a check that they were found in the very language model that is trained on: of the
same depth, with the same weights. A directory that has moved or a model loaded in another dtype is the same one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tga.errors import UserError
from tga.files import write_json
from tga.vlm.language_model import LanguageModelId

LOCATED = "located"
SET_FILE = "tga-locate finds them: alignment.layers_file=PATH/layers.json"


@dataclass(frozen=True)
class LocatedLayers:
    """What `layers.json` says.

    Attributes:
        layers: the layers to align at, in rising order.
        language_model: whose layers they are.
        found: how they were found: plain values for people and scripts.
    """

    layers: tuple[int, ...]
    language_model: LanguageModelId
    found: dict[str, Any]


def write_located_layers(path: Path, located: LocatedLayers) -> None:
    """Write `layers.json`, complete or not at all."""
    write_json(
        path,
        {
            "layers": list(located.layers),
            "language_model": asdict(located.language_model),
            **located.found,
        },
    )


def read_located_layers(path: str | Path) -> LocatedLayers:
    """Read `layers.json`.

    Raises:
        UserError: there is no such file, it is something else, or it holds no layer.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("There is no file of located layers", given=path, remedy=SET_FILE)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        layers = tuple(sorted({int(layer) for layer in content.pop("layers")}))
        model = LanguageModelId(**content.pop("language_model"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"This is not a file of located layers ({type(error).__name__})",
            given=path,
            allowed="a layers.json of tga-locate",
            remedy=SET_FILE,
        ) from error
    if not layers:
        raise UserError(
            "No layer was located: no prompt triggered a refusal",
            given=path,
            remedy="alignment.layers=[0,1,2], or locate with other prompts or localization.openings=[...]",
        )
    return LocatedLayers(layers, model, content)


def check_same_model(located: LocatedLayers, model: LanguageModelId, path: str | Path) -> None:
    """Refuse layers that were located in another language model.

    Raises:
        UserError: depth, width or weights differ; the message shows both sides.
    """
    if located.language_model == model:
        return
    raise UserError(
        "The layers were located in another language model",
        given=f"{path}: {_said(located.language_model)}",
        allowed=f"the model at hand: {_said(model)}",
        remedy="run tga-locate on this model, or name the layers yourself: alignment.layers=[0,1,2]",
    )


def _said(model: LanguageModelId) -> str:
    return f"{model.num_layers} layers of width {model.width}, weights {model.fingerprint}"
