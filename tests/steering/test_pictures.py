"""Pictures that mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tga.errors import UserError
from tga.steering.pictures import blank_picture, mean_picture, noise_picture


def test_blank_is_white_and_noise_is_seeded_and_even():
    assert (np.asarray(blank_picture(5)) == 255).all() and blank_picture(5).size == (5, 5)
    noise = np.asarray(noise_picture(64, 3))
    assert np.array_equal(noise, np.asarray(noise_picture(64, 3)))
    assert not np.array_equal(noise, np.asarray(noise_picture(64, 4)))
    # Uniform on 0..255: mean 127.5, standard deviation 73.9; 12288 values leave the mean within 3 x 0.67.
    assert abs(noise.mean() - 127.5) < 2 and abs(noise.std() - 73.9) < 2


def test_the_mean_is_that_of_the_pixels(tmp_path: Path):
    for value in (10, 20, 60):
        Image.new("RGB", (7, 9), (value, 2 * value, 0)).save(tmp_path / f"{value}.png")
    mean = np.asarray(mean_picture(sorted(tmp_path.glob("*.png")), 4))
    assert mean.shape == (4, 4, 3) and (mean == (30, 60, 0)).all()


def test_pictures_that_are_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"no picture to take the mean of.*steering.mean_of"):
        mean_picture([], 4)
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(UserError, match="cannot be read.*broken.png"):
        mean_picture([tmp_path / "broken.png"], 4)
