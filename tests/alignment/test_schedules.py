"""Schedules at the ends and in the middle."""

from __future__ import annotations

import pytest

from tga.alignment.schedules import SCHEDULES, linear_growth, schedule_named
from tga.errors import UserError


@pytest.mark.parametrize(
    ("name", "values"),
    [("constant", (1.0, 1.0, 1.0)), ("linear_decay", (1.0, 0.75, 0.0)), ("quadratic_decay", (1.0, 0.5625, 0.0))],
)
def test_values(name: str, values: tuple[float, float, float]) -> None:
    schedule = schedule_named(name)
    assert (schedule(0.0), schedule(0.25), schedule(1.0)) == values


def test_growth_ends_at_its_share_of_the_steps() -> None:
    assert [linear_growth(t, 0.25) for t in (0.0, 0.125, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert [linear_growth(t, 0.0) for t in (0.0, 1.0)] == [1.0, 1.0]


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=", ".join(SCHEDULES)):
        schedule_named("cosine")
