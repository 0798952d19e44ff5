"""Pictures are drawn from the packaged atlas, seeded, and differ between the styles."""

from __future__ import annotations

import json
import random

import numpy as np

from tga.mini.lexicon import PICTURED, PICTURED_BENIGN, TOXIC
from tga.mini.scenes import ASSETS, TEST, TRAIN, Scene, draw, glyphs, sample_scene


def test_the_atlas_holds_every_pictured_thing_with_its_unicode_name():
    about = json.loads((ASSETS / "glyphs.json").read_text())
    assert set(about["glyphs"]) == {thing.name for thing in PICTURED}
    assert about["glyphs"]["kitchen knife"]["unicode_name"] == "HOCHO"
    assert (ASSETS / "OFL.txt").read_text().count("SIL OPEN FONT LICENSE") >= 1
    for name, glyph in glyphs().items():
        assert np.asarray(glyph)[..., 3].mean() > 20, f"{name} is an empty cell"


def test_drawing_is_seeded_and_the_styles_differ():
    scene = Scene((TOXIC[0], PICTURED_BENIGN[0]), "blue")
    first, again = (np.asarray(draw(scene, random.Random(3), TRAIN)) for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, np.asarray(draw(scene, random.Random(3), TEST)))


def test_the_background_has_the_colour_and_the_glyph_covers_part_of_it():
    picture = np.asarray(draw(Scene((PICTURED_BENIGN[0],), "blue"), random.Random(0), TRAIN)).astype(float)
    corner = np.median(picture[:4].reshape(-1, 3), axis=0)
    assert corner[2] > corner[0] + 60
    assert np.abs(picture - corner).max(axis=2).mean() > 10


def test_sampled_scenes_have_one_or_two_different_things():
    rng = random.Random(0)
    scenes = [sample_scene(rng, TOXIC, PICTURED_BENIGN, 0.5) for _ in range(400)]
    pairs = [s for s in scenes if len(s.things) == 2]
    assert 150 < len(pairs) < 250
    assert all(s.things[0] != s.things[1] for s in pairs)
    assert all(s.toxic and s.kind != "benign" for s in scenes)
    assert sum(s.things[0].toxic for s in pairs) not in (0, len(pairs))
