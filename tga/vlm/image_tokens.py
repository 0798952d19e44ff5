"""How many image tokens a picture becomes: what the processor writes against what the tower gives."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ProcessorMixin

from tga.errors import UserError
from tga.vlm.families import Family, component, image_token_id


class _ProjectorReached(Exception):
    """Ends the vision path before the projector runs."""


def check_image_tokens(model: nn.Module, family: Family, processor: ProcessorMixin) -> int:
    """Image tokens per picture, after checking on a grey picture that processor and vision tower agree.

    Raises:
        UserError: they do not; the message shows both sides.
    """
    probe: Any = processor(images=[Image.new("RGB", (64, 64), "grey")], text=processor.image_token, return_tensors="pt")
    written = int((probe["input_ids"] == image_token_id(model, family)).sum())
    given = projector_inputs(model, family, probe["pixel_values"]).shape[1]
    if written != given:
        raise UserError(
            "Processor and vision tower disagree on the number of image tokens of a picture",
            given=f"the processor writes {written}, the tower gives {given}",
            allowed="equal numbers",
            remedy="set the processor's patch_size, vision_feature_select_strategy and num_additional_image_tokens "
            "to the tower's (processor_config.json)",
        )
    return given


@torch.no_grad()
def projector_inputs(model: nn.Module, family: Family, pixel_values: Tensor) -> Tensor:
    """What the vision tower hands to the projector.

    Args:
        pixel_values: `[images, 3, height, width]`; moved to the tower's device and dtype.

    Returns:
        `[images, image tokens, vision width]` in the tower's dtype, no gradient.
    """
    caught: list[Tensor] = []

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        caught.append(args[0])
        raise _ProjectorReached

    parameter = next(component(model, family.vision_tower).parameters())
    handle = component(model, family.projector).register_forward_pre_hook(hook)
    try:
        image_features: Any = model.get_image_features
        image_features(pixel_values=pixel_values.to(parameter.device, parameter.dtype))
    except _ProjectorReached:
        pass
    finally:
        handle.remove()
    return caught[0]
