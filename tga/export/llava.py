"""The projector in the layout of the original LLaVA code: `mm_projector.bin` and `config.json`, written and read back.

LLaVA's loader reads `config.json` for the class and the `mm_*` settings, takes the language model from its base, and
then loads `mm_projector.bin` with `strict=False`: a wrong name there leaves the projector random without a word. So
this module writes exactly the names that loader expects, and compares every name and shape before it loads anything.

    LLaVA                          LlavaForConditionalGeneration
    model.mm_projector.0.weight    multi_modal_projector.linear_1.weight  [width, vision_width]
    model.mm_projector.0.bias      multi_modal_projector.linear_1.bias    [width]
    model.mm_projector.2.weight    multi_modal_projector.linear_2.weight  [width, width]
    model.mm_projector.2.bias      multi_modal_projector.linear_2.bias    [width]
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tga.errors import UserError
from tga.export.card import ModelCard, render_card
from tga.export.hf import refuse_foreign_directory
from tga.files import atomic_directory
from tga.vlm.families import Family, component

PROJECTOR_FILE = "mm_projector.bin"
PREFIX = "model.mm_projector."
# Where the linear layers stand in LLaVA's nn.Sequential(Linear, GELU, Linear), in the order of Family.projector_layers.
POSITIONS = ("0", "2")
SELECT_FEATURE = {"default": "patch", "full": "cls_patch"}


def export_llava(
    model: PreTrainedModel,
    family: Family,
    out_dir: str | Path,
    card: ModelCard,
    llm_config: PreTrainedConfig | None = None,
) -> Path:
    """Write the projector of `model` to `out_dir` (replaced as a whole) in LLaVA's layout and return the directory.

    Args:
        model: a model whose projector is LLaVA-1.5's (`mlp2x_gelu`).
        card: names the base models; LLaVA loads the vision tower from `card.base_vision_tower`.
        llm_config: the config of the base language model. It gives `vocab_size`, which an added `<image>` token has
            changed in `model`; without it the model's own text config stands.

    Raises:
        UserError: a projector that LLaVA's `mlp2x_gelu` cannot hold, or an `out_dir` with something else in it.
    """
    target = Path(out_dir).absolute()
    refuse_foreign_directory(target)
    config = llava_config(model.config, card, llm_config)
    state = projector_state(model, family)
    with atomic_directory(target) as directory:
        torch.save(state, directory / PROJECTOR_FILE)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (directory / "README.md").write_text(render_card(card, USAGE.format(llm=card.base_llm)), encoding="utf-8")
    return target


def projector_state(model: PreTrainedModel, family: Family) -> dict[str, Tensor]:
    """The projector's tensors under LLaVA's names: contiguous copies on the CPU, in the dtype they have."""
    own = component(model, family.projector).state_dict()
    state = {}
    for position, attribute in zip(POSITIONS, family.projector_layers, strict=True):
        for part in ("weight", "bias"):
            tensor = own.pop(f"{attribute}.{part}", None)
            if tensor is None:
                raise _not_mlp2x(f"no {attribute}.{part}")
            state[f"{PREFIX}{position}.{part}"] = tensor.detach().cpu().clone().contiguous()
    if own:
        raise _not_mlp2x(f"also {', '.join(sorted(own))}")
    return state


def llava_config(config: PreTrainedConfig, card: ModelCard, llm_config: PreTrainedConfig | None) -> dict[str, Any]:
    """LLaVA's config.json: the language model's own settings, then the `mm_*` keys that its loader reads."""
    if config.projector_hidden_act != "gelu":
        raise _not_mlp2x(f"activation {config.projector_hidden_act}")
    if not isinstance(config.vision_feature_layer, int):
        raise _not_mlp2x(f"features of several layers, {config.vision_feature_layer}")
    text = (llm_config or config.text_config).to_diff_dict()
    for key in ("transformers_version", "architectures", "model_type", "_name_or_path", "dtype", "torch_dtype"):
        text.pop(key, None)
    return {
        **text,
        "_name_or_path": card.base_llm,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "freeze_mm_mlp_adapter": False,
        "hidden_size": config.text_config.hidden_size,
        "image_aspect_ratio": "square",
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": SELECT_FEATURE[config.vision_feature_select_strategy],
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": card.base_vision_tower,
        "tune_mm_mlp_adapter": True,
        "use_mm_proj": True,
        "vocab_size": (llm_config or config.text_config).vocab_size,
    }


def read_projector(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `mm_projector.bin`, or of the directory that holds one, under LLaVA's names.

    Read with `weights_only=True`: the file may hold tensors and nothing that runs.

    Raises:
        UserError: no such file, or a file that holds something else.
    """
    file = Path(path)
    file = file / PROJECTOR_FILE if file.is_dir() else file
    remedy = f"projector=DIRECTORY or projector=PATH/{PROJECTOR_FILE}"
    if not file.is_file():
        raise UserError("There is no projector file", given=file, allowed=f"LLaVA's {PROJECTOR_FILE}", remedy=remedy)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        problem = "This is no file of plain tensors (nothing else is loaded, as it could run code)"
        raise UserError(problem, given=file, allowed=f"LLaVA's {PROJECTOR_FILE}", remedy=remedy) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("The file holds no dictionary of tensors", given=file, remedy=remedy)
    return {str(name): tensor for name, tensor in state.items()}


def import_projector(model: PreTrainedModel, family: Family, path: str | Path) -> None:
    """Load LLaVA's `mm_projector.bin` into the projector of `model`, in place; all names and shapes are compared first.

    A config.json beside the file must agree with the model as well: the same shapes fed from another layer of the
    vision tower would load and see nothing. Values are converted to the dtype of the model's projector.

    Raises:
        UserError: any name, shape or setting differs. The message shows both sides, and the model is as it was.
    """
    given = read_projector(path)
    _compare_settings(model.config, Path(path))
    expected = projector_state(model, family)
    if shapes(given) != shapes(expected):
        raise UserError(
            "The projector file does not fit this model, nothing was loaded",
            given=f"{path}: {_listed(given)}",
            allowed=f"the model's {_listed(expected)}",
            remedy="name the language model and the vision tower that the projector was trained for",
        )
    projector = component(model, family.projector)
    own = {
        f"{attribute}.{part}": given[f"{PREFIX}{position}.{part}"]
        for position, attribute in zip(POSITIONS, family.projector_layers, strict=True)
        for part in ("weight", "bias")
    }
    projector.load_state_dict(own, strict=True)


def _compare_settings(config: PreTrainedConfig, path: Path) -> None:
    """Compare how the projector was fed with how `model` feeds it, where a config.json says so."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    expected = {
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": SELECT_FEATURE[config.vision_feature_select_strategy],
    }
    differing = [key for key, value in expected.items() if key in found and found[key] != value]
    if differing:
        raise UserError(
            "The projector was trained on other vision features than this model gives, nothing was loaded",
            given=f"{file}: " + ", ".join(f"{key}={found[key]}" for key in differing),
            allowed="the model's " + ", ".join(f"{key}={expected[key]}" for key in differing),
            remedy="model.vision_feature_layer=N, model.vision_feature_select_strategy=default (patch) or full",
        )


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _listed(state: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes(state).items())) or "nothing"


def _not_mlp2x(found: str) -> UserError:
    return UserError(
        "LLaVA's format holds a projector of two linear layers with biases and a GELU (mlp2x_gelu)",
        given=f"a projector with {found}",
        remedy="format=hf",
    )


USAGE = """LLaVA wants `llava` in the name of this directory, and the language model as its base:

```bash
python -m llava.serve.cli --model-path PATH --model-base {llm} --image-file PICTURE
```

As the start of LLaVA's second stage: `--pretrain_mm_mlp_adapter PATH/mm_projector.bin`. Back to transformers:
`tga-export projector=PATH model.llm={llm} format=hf`.
"""
