"""Layer sets: all means 1..L, lists may hold 0, everything else is refused with what is allowed."""

from __future__ import annotations

import pytest

from tga.alignment.layers import resolve_layers
from tga.errors import UserError


def test_sets() -> None:
    assert resolve_layers("all", 4) == (1, 2, 3, 4)
    assert resolve_layers([3, 0, 1], 4) == (0, 1, 3)
    assert resolve_layers([4], 4) == (4,)


@pytest.mark.parametrize("spec", [[5], [-1, 2], [], [1, 1], [1.0], [True], "deep"])
def test_mistakes_say_what_is_allowed(spec) -> None:
    with pytest.raises(UserError, match=r'Allowed: "all" \(1 to 4\) or a list of numbers from 0 .* to 4'):
        resolve_layers(spec, 4)
