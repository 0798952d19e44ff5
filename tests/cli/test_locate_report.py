"""The numbers of tga-locate as keys and rows, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tga.cli.locate_report import (
    activation_rows,
    activation_values,
    band_values,
    find_band,
    knockout_values,
    reading,
    report,
    window_rows,
    window_values,
)
from tga.evaluation.rates import wilson
from tga.localization.activation import LayerCounts, Trace
from tga.localization.windows import InsideOutside, Tally


def counted(*layers: tuple[int, ...], opens: int = 0, depth: int = 6) -> LayerCounts:
    counts = LayerCounts(depth)
    for number, fired in enumerate(layers):
        counts.add(Trace(str(number), fired, number < opens))
    return counts


def test_the_band_and_its_middle_half() -> None:
    counts = counted((2,), (3,), (3,), (4,), (4,), (6,), ())
    assert find_band(counts, "band") == (2, 6) and find_band(counts, "contrast_band") == (2, 6)
    assert find_band(counts, "quartiles") == (3, 4), "quartiles 3 and 4"
    assert find_band(counted((2,), (3,)), "contrast_quartiles") == (2, 3), "2.25 and 2.75 are widened to whole layers"
    assert find_band(counted((), ()), "band") is None
    values = band_values("contrast_", counts)
    assert values["contrast_band_median"] == 3.5 and values["contrast_share_without_activation"] == 1 / 7
    assert band_values("", counted(()))["band_min"] is None


def test_values_of_algorithm_1() -> None:
    toxic, benign = counted((2, 3), (3,), (), opens=1, depth=3), counted((3,), (), depth=3)
    rows = activation_rows(toxic, benign)
    assert [row["toxic"] for row in rows] == [0, 1 / 3, 2 / 3] and [row["benign"] for row in rows] == [0, 0, 0.5]
    assert [row["activated"] for row in rows] == [0, 1 / 3, 1 / 3]
    values = activation_values(toxic, toxic, benign)
    assert values["gain_share_layer_3"] == 2 / 3 and values["benign_gain_share_layer_3"] == 0.5
    assert values["toxic_share_opening_with_sorry"] == 1 / 3 and values["benign_share_with_activation"] == 0.5
    alone = activation_values(toxic, toxic, None)
    assert not [key for key in alone if "benign" in key or "contrast" in key]


def test_rows_and_keys_of_windows() -> None:
    rows = window_rows({"plain": Tally(9, 10), "window_1_2": Tally(3, 10), "all": Tally(0, 10)}, [(1, 2)])
    assert [(row["first"], row["last"]) for row in rows] == [(None, None), (1, 2), (None, None)]
    values = window_values("text_dsr", "dsr_blocked", rows)
    assert values["text_dsr"] == 0.9 and values["dsr_blocked_window_1_2"] == 0.3 and values["dsr_blocked_all"] == 0
    assert values["dsr_blocked_window_1_2_high"] == wilson(3, 10).high and values["text_dsr_n"] == 10


@pytest.mark.parametrize(
    ("values", "layers", "parts"),
    [
        ({"share_without_activation": 1.0}, [], ["No prompt activates"]),
        ({"share_without_activation": 0.25}, [2], ["25.0% of the toxic prompts have no activation layer"]),
        (
            {"share_without_activation": 0.0, "benign_share_opening_with_sorry": 0.8},
            [2],
            ["opens the answer to 80%", "ordinary_openings"],
        ),
        (
            {"share_without_activation": 0.0, **knockout_values(InsideOutside(0.5, 0.1))},
            [2],
            ["by 0.500 in windows that touch the band and by 0.100 in the others: more within the band"],
        ),
        ({"share_without_activation": 0.0, **knockout_values(InsideOutside(0.1, 0.5))}, [2], ["not more within"]),
        ({"share_without_activation": 0.0, **knockout_values(InsideOutside(0.1, None))}, [2], ["no outside"]),
    ],
)
def test_what_is_said(values: dict, layers: list[int], parts: list[str]) -> None:
    said = reading(values, layers, [])
    assert len(said) == 1 and all(part in said[0] for part in parts)


def test_a_quiet_result_says_nothing_and_skipped_figures_are_named(tmp_path: Path) -> None:
    assert reading({"share_without_activation": 0.0}, [2], []) == []
    values = {"model": "some/model", "share_without_activation": 0.0, "band_min": 2.0, "text_dsr": 0.5, "text_dsr_n": 4}
    report(tmp_path / "table.md", {**values, "text_dsr_low": 0.2, "text_dsr_high": 0.8}, [2, 3], [4, 5])
    text = (tmp_path / "table.md").read_text()
    assert "Located layers: 2 3" in text and "| text_dsr | 0.500 | 0.200 - 0.800 |" in text
    assert "| band_min | 2.000 |" in text and "Figures 4 and 5 need a model with pictures" in text
