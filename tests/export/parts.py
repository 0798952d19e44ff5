"""A trained model as a test needs it: tiny parts on disk, a projector unlike the fresh one, and its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny import write_tiny_parts
from tga.training.base_model import BaseModel

PROJECTOR = "model.multi_modal_projector."


def trained_model(directory: Path) -> tuple[BaseModel, Any, Any]:
    """The tiny parts joined, with projector weights that no seed of the assembly gives."""
    llm, vision_tower = write_tiny_parts(directory)
    base = BaseModel(llm=str(llm), vision_tower=str(vision_tower))
    model, processor = base.load(dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return base, model.eval(), processor


def write_checkpoint(path: Path, base: BaseModel, model: Any, *, also: tuple[str, ...] = ()) -> Path:
    """What `tga-train` writes, as far as an export reads it: the projector, and the parameters named in `also`."""
    parameters = dict(model.named_parameters())
    names = [name for name in parameters if name.startswith(PROJECTOR)] + list(also)
    content = {
        "state_dict": {f"model.{name}": parameters[name].detach().clone() for name in names},
        "hyper_parameters": {
            "base_model": base.located(),
            "method": "tga, all layers, raw cosine",
            "learning_rate": 0.002,
            "loss": {"pair_weight": 1.0},
        },
        "global_step": 7,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path
