"""Swapped words: how many, whose, and that everything else stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tga.data.noise import with_swapped_words
from tga.data.sample import Sample, Turn
from tga.errors import UserError


def sample(number: int, images: int = 1) -> Sample:
    turns = (Turn("user", f"what is {number} ?"), Turn("assistant", f"number {number}"))
    pictures = tuple(Path(f"{number}-{image}.png") for image in range(images))
    return Sample(f"id{number}", pictures, turns, f"number {number}" if images else None, (f"near {number}",))


SAMPLES = [sample(number) for number in range(40)] + [sample(40, images=0), sample(41, images=2)]


@pytest.mark.parametrize(("share", "expected"), [(0.1, 4), (0.05, 2), (1.0, 40)])
def test_a_share_of_the_pictures_has_the_words_of_another(share: float, expected: int) -> None:
    found = list(with_swapped_words(SAMPLES, share, seed=0))
    moved = [number for number, (old, new) in enumerate(zip(SAMPLES, found, strict=True)) if old.caption != new.caption]
    assert len(moved) == expected and max(moved) < 40, "words alone, and several pictures, keep their own"
    assert sorted(s.caption or "" for s in found) == sorted(s.caption or "" for s in SAMPLES), "none lost, none doubled"
    for old, new in zip(SAMPLES, found, strict=True):
        assert (new.id, new.images, new.neighbours) == (old.id, old.images, old.neighbours)
        assert new.caption is None or new.turns[1].text == new.caption or len(new.images) == 2
        assert (new.turns == old.turns) == (new.caption == old.caption)


def test_the_seed_decides_which() -> None:
    found = [[s.caption for s in with_swapped_words(SAMPLES, 0.2, seed)] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_none_is_the_samples_themselves() -> None:
    assert with_swapped_words(SAMPLES, 0, seed=0) is SAMPLES


@pytest.mark.parametrize(
    ("share", "part"), [(-0.1, "-0.1"), (1.5, "0 to 1"), (True, "True"), ("a", "Given: a"), (0.03, "0.03 of 40")]
)
def test_mistakes_are_told(share: float, part: str) -> None:
    with pytest.raises(UserError) as caught:
        with_swapped_words(SAMPLES, share, seed=0)
    assert part in str(caught.value)
