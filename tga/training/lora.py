"""LoRA on the language model: small trained matrices beside frozen weights (peft, the optional extra `lora`).

peft puts its layers in the place of the linear ones, so the model stays of its class and every path of its family
holds. A checkpoint has the adapters only; for use they are multiplied into the weights, and no trace of peft remains.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from tga.errors import UserError
from tga.vlm.families import Family, component

LLAVA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSettings:
    """LLaVA's own choice for its second stage is rank 128, alpha 256, all linear layers of the decoder.

    Attributes:
        rank: of the two matrices' product.
        alpha: the product is scaled by alpha / rank.
        dropout: before the first matrix, in the multimodal forward alone: the texts that an objective compares with
            are read without.
        targets: names of the linear layers.
    """

    rank: int = 128
    alpha: float = 256.0
    dropout: float = 0.0
    targets: tuple[str, ...] = LLAVA_TARGETS

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.targets:
            raise UserError(
                "Settings of LoRA out of range",
                given=self.plain(),
                allowed="rank >= 1, alpha > 0, dropout in [0, 1), targets: names of linear layers",
                remedy="model.lora={rank: 128, alpha: 256}",
            )

    def plain(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {**asdict(self), "targets": list(self.targets)}


def add_lora(model: nn.Module, family: Family, settings: LoraSettings) -> None:
    """Put adapters beside the linear layers of the decoder, in place; they train, in float32, and start as nothing.

    What trained before still does. The first matrices are drawn from the global generator.

    Raises:
        UserError: peft is not installed, or the decoder has no layer of these names.
    """
    peft = _peft()
    language_model = component(model, family.language_model)
    linear = {name.rpartition(".")[2] for name, part in language_model.named_modules() if isinstance(part, nn.Linear)}
    if unknown := sorted(set(settings.targets) - linear):
        raise UserError(
            "The decoder has no linear layers of these names",
            given=unknown,
            allowed=", ".join(sorted(linear)),
            remedy="model.lora={targets: [q_proj, v_proj]}",
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    peft.inject_adapter_in_model(config, language_model)
    for parameter in trained:
        parameter.requires_grad_(True)  # peft freezes all that is not its own
    for layer in _adapted(language_model).values():
        for part in (layer.lora_A, layer.lora_B, layer.lora_dropout):
            part.float().train()


def merge_lora(model: nn.Module, family: Family) -> None:
    """Multiply the adapters into the weights they stand beside and take peft's layers out, in place."""
    language_model = component(model, family.language_model)
    for name, layer in _adapted(language_model).items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(language_model.get_submodule(parent), child, layer.get_base_layer())


def _adapted(module: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)}


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("LoRA needs peft", remedy="pip install 'tga-vlm[lora]', or model.lora=null") from error
    return peft
