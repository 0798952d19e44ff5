"""Faster kernels where they are installed: Liger's norms, rotary embeddings and gated units for the decoder."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from tga.errors import UserError
from tga.vlm.families import Family, component


def use_liger(model: nn.Module, family: Family) -> None:
    """Put Liger's kernels into the language model, in place.

    Not its cross entropy: our LM loss computes logits on label positions only, which saves more (`tga.vlm.lm_loss`).

    Raises:
        UserError: liger-kernel is not installed (it needs Triton, and that a GPU), or does not know this decoder.
    """
    try:
        liger: Any = importlib.import_module("liger_kernel.transformers.monkey_patch")
    except ImportError as error:
        raise UserError(
            f"Liger's kernels cannot be loaded ({error})",
            remedy="pip install liger-kernel on a machine with a GPU, or training.liger_kernel=false",
        ) from error
    language_model: Any = component(model, family.language_model)
    known = liger.MODEL_TYPE_TO_APPLY_LIGER_FN
    kind = language_model.config.model_type
    if kind not in known:
        raise UserError(
            "Liger has no kernels for this decoder",
            given=kind,
            allowed=", ".join(sorted(known)),
            remedy="training.liger_kernel=false",
        )
    liger._apply_liger_kernel_to_instance(model=language_model, cross_entropy=False, fused_linear_cross_entropy=False)
