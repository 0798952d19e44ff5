"""A loaded model made ready to train: what trains and what does not, in which dtype, and with how much memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tga.errors import UserError
from tga.training.checkpoint import trainable_parameters
from tga.training.kernels import use_liger
from tga.training.lora import LoraSettings, add_lora
from tga.training.settings import TrainSettings, check_precision
from tga.vlm.families import Family, component
from tga.vlm.freezing import freeze


def prepare_model(
    model: Any, family: Family, settings: TrainSettings, train: Sequence[str], lora: LoraSettings | None
) -> None:
    """Freeze, add adapters, keep what trains in float32, and switch gradient checkpointing on where asked.

    Frozen weights stay in the dtype they have: bfloat16 under bf16-mixed, where what trains has float32 weights,
    gradients and optimiser states.

    Raises:
        UserError: settings that do not go with the model or with each other.
    """
    freeze(model, family, train)
    for parameter in model.parameters():
        check_precision(settings.precision, parameter.dtype)
    if settings.liger_kernel:
        use_liger(model, family)
    if settings.gradient_checkpointing:
        _checkpoint_gradients(model, family)
    if lora is not None:
        _adapt(model, family, settings, train, lora)
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.float()


def active_checkpointing(model: nn.Module, family: Family) -> tuple[int, int]:
    """In how many decoder layers gradients are checkpointed, and how many there are: it is so in train mode only."""
    layers = component(model, family.decoder_layers)
    assert isinstance(layers, nn.ModuleList)
    return sum(bool(getattr(layer, "gradient_checkpointing", False)) and layer.training for layer in layers), len(
        layers
    )


def _checkpoint_gradients(model: Any, family: Family) -> None:
    # 5.23 warns that this name goes in version 6; its successor, activation_checkpointing_enable, is not in 5.0.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Checkpointing is active in train mode only; without dropout that mode computes the same.
    language_model = component(model, family.language_model).train()
    attention_dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    if attention_dropout or any(isinstance(module, nn.Dropout) and module.p for module in language_model.modules()):
        remedy = "training.gradient_checkpointing=false, or set the dropout in the model's config.json to 0"
        raise UserError("Gradient checkpointing needs a language model without dropout", remedy=remedy)


def _adapt(model: Any, family: Family, settings: TrainSettings, train: Sequence[str], lora: LoraSettings) -> None:
    if "language_model" in train:
        raise UserError(
            "The language model trains as a whole, and adapters were asked for",
            given=f"model.train={list(train)}",
            remedy="model.train=[projector] for adapters, or model.lora=null for all of the language model",
        )
    add_lora(model, family, lora)
