"""Where an exported model comes from: a training checkpoint, or a named model, with LLaVA's projector if given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from tga.errors import UserError
from tga.training.base_model import BaseModel
from tga.training.checkpoint import latest_checkpoint, read_checkpoint, restore_model
from tga.vlm.families import Family, family_of
from tga.vlm.pretrained import pretrained
from tga.vlm.projector_files import import_projector


@dataclass(frozen=True)
class Source:
    """A loaded model with what is known of it.

    Attributes:
        model: the complete model, in eval mode.
        processor: its processor.
        family: where its parts are.
        base: the base model by name.
        trained: names of the parameters that a checkpoint brought; None where there was no checkpoint.
        hyper_parameters: the checkpoint's plain dict; empty where there was none.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    family: Family
    base: BaseModel
    trained: tuple[str, ...] | None
    hyper_parameters: Mapping[str, Any]


def source_from_checkpoint(path: str | Path, *, dtype: torch.dtype | None, attn_implementation: str = "sdpa") -> Source:
    """The base model that a checkpoint names, with the trained weights put in.

    Args:
        path: a .ckpt file, or the directory of a run (its checkpoint of the most steps is taken).
        dtype: of the loaded model; None takes the dtype in which the base model is stored.

    Raises:
        UserError: no checkpoint there, or one that does not fit the model that it names.
    """
    file = Path(path)
    if file.is_dir():
        file = latest_checkpoint(file / "checkpoints" if (file / "checkpoints").is_dir() else file)
    read = read_checkpoint(file)
    model, processor = restore_model(read, dtype=dtype, attn_implementation=attn_implementation)
    return Source(model, processor, family_of(model), read.base, tuple(sorted(read.weights)), read.hyper_parameters)


def source_from_model(
    base: BaseModel, *, projector: str | Path | None, dtype: torch.dtype | None, attn_implementation: str = "sdpa"
) -> Source:
    """The model that `base` names, with the projector of a LLaVA `mm_projector.bin` put in if one is given.

    Raises:
        UserError: the model is named by its parts and there is no projector (it would be a random one), or the
            projector does not fit.
    """
    if base.vlm is None and projector is None:
        raise UserError(
            "A language model and a vision tower alone have no trained projector to export",
            given=f"model.llm={base.llm}, model.vision_tower={base.vision_tower}",
            allowed="a checkpoint of a training run, a LLaVA projector for them, or a complete model",
            remedy="checkpoint=PATH, or projector=PATH beside them, or model.vlm=PATH",
        )
    model, processor = base.load(dtype=dtype, attn_implementation=attn_implementation)
    family = family_of(model)
    if projector is not None:
        import_projector(model, family, projector)
    return Source(model.eval(), processor, family, base, None, {})


def base_llm_config(base: BaseModel, named: str | None = None) -> PreTrainedConfig | None:
    """The config of the language model as it was before `<image>` was added; None where only the whole VLM is named.

    named: path or hub id of the language model, for a VLM that does not say.
    """
    if base.llm is not None:
        return pretrained(AutoConfig, base.llm, remedy="model.llm=PATH")
    return None if named is None else pretrained(AutoConfig, named, remedy="llm_name=PATH or hub id")
