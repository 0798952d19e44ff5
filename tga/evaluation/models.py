"""Which model a path names: a checkpoint of `tga-train`, a run of it, a Hugging Face directory, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tga.errors import UserError
from tga.evaluation.kept_answers import file_stamp
from tga.training.checkpoint import latest_checkpoint, read_checkpoint, restore_model
from tga.vlm.assemble import load_causal_lm, load_llm, load_vlm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
SET_MODEL = "models={NAME: PATH}, a LLaVA model or a run of tga-train"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_models(models: dict[str, str], *, remedy: str = SET_MODEL) -> None:
    """Raise one UserError that lists every model whose name or path cannot be used; loads nothing."""
    if not models:
        raise UserError("no model is named", remedy="models={NAME: PATH, ANOTHER: PATH}")
    wrong = [f"{name} (a name is letters, digits, _ . -)" for name in models if not NAME.fullmatch(name)]
    wrong += [f"{name}: {path}" for name, path in models.items() if _kind(path) is None]
    if wrong:
        raise UserError(
            "models that cannot be found",
            given="; ".join(wrong),
            allowed="a .ckpt file, a run directory of tga-train, a Hugging Face model directory, or a hub id",
            remedy=remedy,
        )


def load_model(path: str, *, dtype: str, device: str, attn_implementation: str) -> tuple[Any, Any]:
    """The model in eval mode on the device, and its processor.

    dtype: float32, bfloat16, float16, or auto (float32 on a CPU, else bfloat16). device: as torch names it, or auto.
    Raises UserError for an unknown dtype or a path that names no model.
    """
    where, chosen = _where_and_how(device, dtype)
    check_models({"model": path})
    checkpoint = _checkpoint(Path(path))
    if checkpoint is not None:
        trained = read_checkpoint(checkpoint)
        model, processor = restore_model(trained, dtype=chosen, attn_implementation=attn_implementation)
    else:
        model, processor = load_vlm(path, chosen, attn_implementation, remedy=SET_MODEL)
    return model.to(where).eval(), processor


def load_judge(path: str, *, dtype: str, device: str, remedy: str) -> tuple[Any, Any]:
    """A causal language model of any layout, in eval mode on the device, and its tokenizer; as `load_model`."""
    where, chosen = _where_and_how(device, dtype)
    model, tokenizer = load_causal_lm(path, chosen, None, remedy=remedy)
    module: Any = model
    return module.to(where).eval(), tokenizer


def load_language_model(path: str, *, dtype: str, device: str, attn_implementation: str) -> tuple[Any, Any]:
    """A language model without a VLM around it, in eval mode on the device, and its tokenizer; as `load_model`."""
    where, chosen = _where_and_how(device, dtype)
    model, tokenizer = load_llm(path, chosen, attn_implementation)
    module: Any = model
    return module.to(where).eval(), tokenizer


def model_stamp(path: str) -> list[tuple[str, int, int]]:
    """Path, size and time of change (ns) of the files that a model's path stands for; empty for a hub id.

    Raises UserError for a run without a checkpoint.
    """
    place = Path(path)
    checkpoint = _checkpoint(place)
    files = [checkpoint] if checkpoint is not None else sorted(file for file in place.glob("*") if file.is_file())
    return [file_stamp(file) for file in files]


def _where_and_how(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that two words of a config mean."""
    where = torch.device(default_device() if device == "auto" else device)
    if dtype == "auto":
        dtype = "float32" if where.type == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise UserError("an unknown dtype", given=dtype, allowed=["auto", *DTYPES], remedy="dtype=float32")
    return where, DTYPES[dtype]


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _checkpoint(path: Path) -> Path | None:
    """The checkpoint file that the path is or whose run it is; None for anything else."""
    if path.is_file():
        return path
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    return latest_checkpoint(folder) if folder.is_dir() else None


def _kind(path: str) -> str | None:
    place = Path(path)
    if place.is_file() or (place / "checkpoints").is_dir() or (place.is_dir() and place.name == "checkpoints"):
        return "checkpoint"
    if (place / "config.json").is_file():
        return "directory"
    return "hub" if not place.exists() and HUB_ID.fullmatch(path) else None
