"""How many image tokens a picture becomes: what the processor writes against what the model puts there."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tga.errors import UserError
from tga.vlm.families import Family, component
from tga.vlm.pictures import GREY_SIZE, Pictures, to_model

WIDE_SIZE = (640, 320)


class _ProjectorReached(Exception):
    """Ends the vision path before the projector runs."""


def check_image_tokens(model: nn.Module, family: Family, processor: Any) -> int:
    """Image tokens of a small square picture, after checking on grey pictures that processor and model agree.

    Where the number depends on the picture, a wide one is tried as well; ask `tga.vlm.pictures.Pictures.count` for the
    number of any other.

    Raises:
        UserError: they do not agree; the message shows both sides.
    """
    pictures = Pictures(processor, family)
    for size in (GREY_SIZE, WIDE_SIZE) if pictures.vary else (GREY_SIZE,):
        written, given = pictures.count(size), _tokens_given(model, family, pictures, size)
        if written != given:
            raise UserError(
                "Processor and vision tower disagree on the number of image tokens of a picture",
                given=f"the processor writes {written}, the tower gives {given} ({size[0]} x {size[1]} pixels)",
                allowed="equal numbers",
                remedy="set the processor's patch_size, vision_feature_select_strategy and num_additional_image_tokens "
                "to the tower's (processor_config.json)",
            )
    return pictures.count(GREY_SIZE)


@torch.no_grad()
def _tokens_given(model: Any, family: Family, pictures: Pictures, size: tuple[int, int]) -> int:
    """Vectors that the model puts in the place of the image tokens of a grey picture."""
    inputs = pictures.inputs([Image.new("RGB", size, "grey")], [pictures.tokens(size)])
    parameter = next(component(model, family.vision_tower).parameters())
    found = model.get_image_features(**to_model(inputs, parameter.device, parameter.dtype))
    features = getattr(found, "pooler_output", found)
    return sum(int(vectors.reshape(-1, vectors.shape[-1]).shape[0]) for vectors in features)


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
