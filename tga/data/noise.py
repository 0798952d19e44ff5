"""Noise on purpose: a share of the samples with the words of another one, to measure what noise a method bears.

Captions from the web often belong to another picture. Here conversation and caption of some samples go round among
them, so that no words are lost or said twice; pictures keep their ids and their neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from tga.data.packed import PackedSamples
from tga.data.sample import Sample
from tga.errors import UserError


def check_share(share: float) -> None:
    """Raise UserError for what is no share."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        problem = "data.swapped_words is a share of the samples"
        raise UserError(problem, given=share, allowed="0 to 1", remedy="data.swapped_words=0.1")


def with_swapped_words(samples: Sequence[Sample], share: float, seed: int) -> Sequence[Sample]:
    """The samples, of which `share` of those with one picture have the turns and the caption of another one of them.

    Which ones is drawn from `seed`. Each of them gets the words of the next one drawn, the last those of the first:
    never its own, though two samples may say the same. The samples themselves for a share of 0.

    Raises:
        UserError: no share, or one that leaves fewer than two samples to swap.
    """
    check_share(share)
    if not share:
        return samples
    single = [number for number, sample in enumerate(samples) if len(sample.images) == 1]
    count = round(share * len(single))
    if count < 2:
        problem = "Fewer than two samples would swap their words"
        raise UserError(
            problem, given=f"{share:g} of {len(single)} samples with one picture", remedy="data.swapped_words=0"
        )
    drawn = np.random.default_rng(seed).permutation(single)[:count].tolist()
    return PackedSamples(_swapped(samples, dict(zip(drawn, drawn[1:] + drawn[:1], strict=True))))


def _swapped(samples: Sequence[Sample], words_of: dict[int, int]) -> Iterator[Sample]:
    for number, sample in enumerate(samples):
        if number in words_of:
            other = samples[words_of[number]]
            sample = dataclasses.replace(sample, turns=other.turns, caption=other.caption)
        yield sample
