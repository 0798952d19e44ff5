"""Scenes of one or two glyphs and how they are drawn.

A `Scene` is one or two things, left to right, on a background of one colour. `draw` renders it at random place, size
and rotation. The two styles differ in what they do to the picture: `TRAIN` is clean and noisy, `TEST` adds other
sizes, a textured background, blur and JPEG artefacts, so that no test picture comes from the training distribution.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from retrieval_index.picture_files import opened, read_rgb
from tga.mini.lexicon import COLORS, Thing

ASSETS = Path(__file__).parent / "assets"
PICTURE_SIZE = 64  # side of a picture, in pixels


@dataclass(frozen=True)
class Scene:
    """One or two things, left to right, and the colour of the background."""

    things: tuple[Thing, ...]
    color: str

    @property
    def toxic(self) -> bool:
        return any(thing.toxic for thing in self.things)

    @property
    def kind(self) -> str:
        """The toxic scene the picture belongs to, or "benign"."""
        return next((thing.kind for thing in self.things if thing.toxic), "benign")


@dataclass(frozen=True)
class Style:
    """How pictures are drawn: glyph sizes in pixels, largest rotation in degrees, noise in grey levels."""

    single_sizes: tuple[int, int]
    pair_sizes: tuple[int, int]
    rotation: float
    noise: float
    texture: bool
    blur: float
    jpeg_quality: tuple[int, int] | None


TRAIN = Style((36, 52), (28, 32), 14.0, 10.0, texture=False, blur=0.0, jpeg_quality=None)
TEST = Style((32, 56), (26, 32), 18.0, 13.0, texture=True, blur=0.7, jpeg_quality=(60, 95))


@lru_cache(maxsize=1)
def glyphs() -> dict[str, Image.Image]:
    """Name -> RGBA glyph of the packaged atlas."""
    about = json.loads((ASSETS / "glyphs.json").read_text())
    cell = about["cell"]
    with opened(ASSETS / "glyphs.png") as picture:
        atlas = picture.convert("RGBA")
    return {
        name: atlas.crop((place["x"], place["y"], place["x"] + cell, place["y"] + cell))
        for name, place in about["glyphs"].items()
    }


@lru_cache(maxsize=1)
def _grid() -> np.ndarray:
    """Row and column of each pixel as a share of the side, `[2, PICTURE_SIZE, PICTURE_SIZE]` float32, read-only."""
    grid = np.mgrid[0:PICTURE_SIZE, 0:PICTURE_SIZE].astype(np.float32) / PICTURE_SIZE
    grid.flags.writeable = False
    return grid


def _background(color: str, style: Style, rng: np.random.Generator) -> Image.Image:
    shade = np.array(COLORS[color], dtype=np.float32) * rng.uniform(0.88, 1.06)
    field = np.broadcast_to(shade, (PICTURE_SIZE, PICTURE_SIZE, 3)).copy()
    rows, columns = _grid()
    field *= (1 + rng.uniform(-0.12, 0.12) * (rows - 0.5) + rng.uniform(-0.12, 0.12) * (columns - 0.5))[..., None]
    if style.texture:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 7)
        wave = np.sin(2 * np.pi * waves * (rows * np.cos(angle) + columns * np.sin(angle)))
        field += (wave * rng.uniform(4, 14))[..., None]
    field += rng.normal(0, style.noise, field.shape)
    return Image.fromarray(field.clip(0, 255).astype(np.uint8)).convert("RGBA")


def draw(scene: Scene, rng: random.Random, style: Style = TRAIN) -> Image.Image:
    """The scene as an RGB picture of PICTURE_SIZE x PICTURE_SIZE pixels; all randomness comes from `rng`."""
    numbers = np.random.default_rng(rng.getrandbits(63))
    picture = _background(scene.color, style, numbers)
    count = len(scene.things)
    low, high = style.single_sizes if count == 1 else style.pair_sizes
    for place, thing in enumerate(scene.things):
        size = rng.randint(low, high)
        glyph = glyphs()[thing.name].resize((size, size), Image.Resampling.BILINEAR)
        glyph = glyph.rotate(rng.uniform(-style.rotation, style.rotation), Image.Resampling.BILINEAR)
        half = PICTURE_SIZE // count
        left = place * half + rng.randint(0, max(half - size, 0))
        top = rng.randint(0, PICTURE_SIZE - size)
        picture.alpha_composite(glyph, (min(left, PICTURE_SIZE - size), top))
    finished = picture.convert("RGB")
    if style.blur:
        finished = finished.filter(ImageFilter.GaussianBlur(rng.uniform(0, style.blur)))
    if style.jpeg_quality:
        buffer = io.BytesIO()
        finished.save(buffer, format="JPEG", quality=rng.randint(*style.jpeg_quality))
        finished = read_rgb(buffer)
    return finished


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, which every loader of pictures reads.

    Not compressed: noise shrinks by a quarter at most, for half as much time again.
    """
    picture.save(path, format="PNG", compress_level=0)


def sample_scene(rng: random.Random, first: tuple[Thing, ...], second: tuple[Thing, ...], pair_share: float) -> Scene:
    """A scene with a thing of `first` and, with probability `pair_share`, another of `second`, in random order."""
    things = [rng.choice(first)]
    if rng.random() < pair_share:
        things.append(rng.choice([thing for thing in second if thing != things[0]]))
        rng.shuffle(things)
    return Scene(tuple(things), rng.choice(tuple(COLORS)))
