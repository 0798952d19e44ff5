"""The projector in the layout of the original LLaVA code: `mm_projector.bin` and `config.json`.

LLaVA's loader reads `config.json` for the class and the `mm_*` settings, takes the language model from its base, and
then loads `mm_projector.bin` with `strict=False`: a wrong name there leaves the projector random without a word. So
this module writes exactly the names that loader expects. They are listed, and read back, in `tga.vlm.projector_files`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tga.errors import UserError
from tga.export.card import ModelCard, is_hub_id, render_card
from tga.export.hf import KIND, refuse_foreign_directory
from tga.files import atomic_directory
from tga.vlm.families import LLAVA, Family, component
from tga.vlm.projector_files import PROJECTOR_FILE, SELECT_FEATURE, llava_names

# LLaVA's class and model_type by the language model's model_type.
CLASSES = {
    "llama": ("LlavaLlamaForCausalLM", "llava_llama"),
    "mistral": ("LlavaMistralForCausalLM", "llava_mistral"),
}


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
        llm_config: the config of the base language model, into which LLaVA loads that model's weights. Its
            `vocab_size` is not that of `model`, which counts an added `<image>` token.

    Raises:
        UserError: no `llm_config`, a projector that LLaVA's `mlp2x_gelu` cannot hold, or an `out_dir` with something
            else in it.
    """
    target = Path(out_dir).absolute()
    refuse_foreign_directory(target)
    config = llava_config(model.config, card, llm_config)
    state = projector_state(model, family)
    with atomic_directory(target, KIND) as directory:
        torch.save(state, directory / PROJECTOR_FILE)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (directory / "README.md").write_text(render_card(card, _usage(card, config["model_type"])), encoding="utf-8")
    return target


def projector_state(model: PreTrainedModel, family: Family) -> dict[str, Tensor]:
    """The projector's tensors under LLaVA's names: contiguous copies on the CPU, in the dtype they have.

    Raises:
        UserError: a projector that is not two linear layers with biases.
    """
    own = component(model, family.projector).state_dict()
    names = llava_names(family)
    if lacking := sorted(set(names.values()) - set(own)):
        raise _not_mlp2x(f"no {', '.join(lacking)}")
    if more := sorted(set(own) - set(names.values())):
        raise _not_mlp2x(f"also {', '.join(more)}")
    return {name: own[inner].detach().cpu().clone().contiguous() for name, inner in names.items()}


def llava_config(config: PreTrainedConfig, card: ModelCard, llm_config: PreTrainedConfig | None) -> dict[str, Any]:
    """LLaVA's config.json: the language model's own settings, then the `mm_*` keys that its loader reads."""
    if config.model_type not in LLAVA.model_types:
        raise _not_mlp2x(f"the vision path of {config.model_type}")
    if config.text_config.model_type not in CLASSES:
        raise UserError(
            "LLaVA's code has no class for this language model",
            given=f"model_type {config.text_config.model_type!r}",
            allowed=", ".join(CLASSES),
            remedy="format=hf",
        )
    if config.projector_hidden_act != "gelu":
        raise _not_mlp2x(f"activation {config.projector_hidden_act}")
    if not isinstance(config.vision_feature_layer, int):
        raise _not_mlp2x(f"features of several layers, {config.vision_feature_layer}")
    if llm_config is None:
        raise UserError(
            "The base language model is not known, whose vocabulary LLaVA's config has to name: the complete model's "
            "counts <image> too",
            given=f"{config.text_config.vocab_size} rows with it",
            remedy="llm_name=PATH or hub id of the base language model, or format=hf",
        )
    text = _flat_rope(llm_config.to_diff_dict())
    for key in ("transformers_version", "architectures", "model_type", "_name_or_path", "dtype", "torch_dtype"):
        text.pop(key, None)
    return {
        **text,
        "_name_or_path": card.base_llm,
        "architectures": [CLASSES[config.text_config.model_type][0]],
        "model_type": CLASSES[config.text_config.model_type][1],
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
        "vocab_size": llm_config.vocab_size,
    }


def _flat_rope(text: dict[str, Any]) -> dict[str, Any]:
    """Settings of the rotary embeddings where the transformers of LLaVA (4.37) looks for them.

    Newer releases keep them in `rope_parameters`, which an older one passes over: it would take a base of 10,000.
    """
    rope = dict(text.pop("rope_parameters", None) or {})
    kind = rope.pop("rope_type", "default")
    if "rope_theta" in rope:
        text["rope_theta"] = rope.pop("rope_theta")
    if kind != "default":
        text["rope_scaling"] = {"type": kind, **rope}
    return text


def _not_mlp2x(found: str) -> UserError:
    return UserError(
        "LLaVA's format holds a projector of two linear layers with biases and a GELU (mlp2x_gelu)",
        given=f"a projector with {found}",
        remedy="format=hf",
    )


def _usage(card: ModelCard, model_type: str) -> str:
    """LLaVA's loader puts every base language model into its Llama class, which a Mistral config does not fit."""
    llm = card.base_llm if is_hub_id(card.base_llm) else "LANGUAGE_MODEL"
    return ((SERVE if model_type == "llava_llama" else "") + TRAIN_ON).format(llm=llm)


SERVE = """LLaVA wants `llava` in the name of this directory, and the language model as its base:

```bash
python -m llava.serve.cli --model-path PATH --model-base {llm} --image-file PICTURE
```

"""
TRAIN_ON = """As the start of LLaVA's second stage: `--pretrain_mm_mlp_adapter PATH/mm_projector.bin`.
Back to transformers: `tga-export projector=PATH model.llm={llm} format=hf`.
"""
