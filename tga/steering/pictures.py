"""Meaningless pictures for CMRM: blank, noise, and the mean of many pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from retrieval_index.picture_files import read_rgb, reason
from tga.errors import UserError

PICTURES = ("blank", "noise", "mean", "own")


def blank_picture(size: int) -> Image.Image:
    """A white picture of `size` x `size` pixels."""
    return Image.new("RGB", (size, size), "white")


def noise_picture(size: int, seed: int) -> Image.Image:
    """Independent uniform noise in every pixel and channel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mean_picture(paths: Iterable[Path], size: int) -> Image.Image:
    """The pixel-wise mean of pictures, each first made `size` x `size`; reads them one by one.

    Raises UserError where there is none, or one cannot be read.
    """
    total, count = np.zeros((size, size, 3)), 0
    for path in paths:
        try:
            total += np.asarray(read_rgb(path).resize((size, size), Image.Resampling.BICUBIC))
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(
                f"A picture cannot be read ({reason(error)})", given=path, remedy="replace or remove it"
            ) from error
        count += 1
    if not count:
        raise UserError("There is no picture to take the mean of", remedy="steering.mean_of=FILE with pictures in it")
    return Image.fromarray((total / count).round().astype(np.uint8))
