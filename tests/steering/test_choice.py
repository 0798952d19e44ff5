"""The rule that takes a strength from a sweep."""

from __future__ import annotations

import pytest

from tga.errors import UserError
from tga.steering.choice import Rule, choose_alpha, sweep_grid

RULE = Rule("dsr", "over", ("captions", "vqa"), over_refusal_limit=0.05, utility_tolerance=0.02)


def rates(dsr: float, over: float = 0.0, captions: float = 0.6, vqa: float = 0.7) -> dict[str, float]:
    return {"dsr": dsr, "over": over, "captions": captions, "vqa": vqa}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({0.0: rates(0.1), 0.5: rates(0.3), 1.0: rates(0.6)}, 1.0),
        ({0.0: rates(0.1), 0.5: rates(0.3), 1.0: rates(0.6, over=0.06)}, 0.5),
        ({0.0: rates(0.1), 0.5: rates(0.3), 1.0: rates(0.6, over=0.05, captions=0.58)}, 1.0),
        ({0.0: rates(0.1), 0.5: rates(0.3), 1.0: rates(0.6, vqa=0.67)}, 0.5),
        ({0.0: rates(0.1), 0.5: rates(0.3), 1.0: rates(0.3)}, 0.5),
        ({0.0: rates(0.3), 0.5: rates(0.3), 1.0: rates(0.2)}, 0.0),
        ({0.0: rates(0.1), 0.5: rates(0.3, captions=0.1)}, 0.0),
        ({0.0: rates(0.9, over=0.3), 0.5: rates(0.3)}, 0.5),
        ({0.0: rates(0.1, over=0.3), 0.5: rates(0.3, over=0.2)}, 0.0),
    ],
    ids=["best", "over-refuses", "at both limits", "useless", "tie", "tie with none", "none fits", "plain over-refuses",
         "all over-refuse"],
)  # fmt: skip
def test_the_rule(found: dict[float, dict[str, float]], expected: float):
    assert choose_alpha(found, RULE) == expected


def test_the_rule_in_words_names_its_numbers():
    assert str(RULE).startswith("largest dsr with over <= 0.05, captions >= that of alpha 0 - 0.02, vqa >=")


def test_metrics_that_were_not_measured_are_named():
    with pytest.raises(UserError, match=r"not measured.*vqa.*steering.choose.dsr"):
        choose_alpha({0.0: {"dsr": 0.1, "over": 0.0, "captions": 0.5}}, RULE)


def test_the_grid_is_sorted_and_holds_zero():
    assert sweep_grid([1, 0.2]) == (0.0, 0.2, 1.0) == sweep_grid([0, 1.0, 0.2])


@pytest.mark.parametrize("wrong", [[0.5, 0.5], [-0.1], ["a"], [True, 2], [float("nan")], [float("inf")]])
def test_strange_strengths_are_refused(wrong: list):
    with pytest.raises(UserError, match=r"different numbers from 0.*steering.alphas"):
        sweep_grid(wrong)
