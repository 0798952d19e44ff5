"""The comparison table: keys, pairing by seed, shared text rates, one seed, and what the notes say."""

from __future__ import annotations

import pytest

from tga.evaluation.bootstrap import Resampled
from tga.evaluation.comparison import (
    bootstrap_table,
    bootstrap_values,
    comparison_values,
    differences_table,
    groups_table,
    layer_mean,
    means_table,
    notes,
    numbers_only,
)

stats = pytest.importorskip("scipy.stats")

BASE = {0: 0.05, 1: 0.10, 2: 0.02}
TGA = {0: 0.45, 1: 0.70, 2: 0.50}
CAPTION = {"baseline": {0: 0.6, 1: 0.7, 2: 0.65}, "tga": {0: 0.7, 1: 0.65, 2: 0.66}}


def cells() -> dict[tuple[str, int], dict[str, float]]:
    made = {}
    for method, dsr in (("baseline", BASE), ("tga", TGA)):
        for seed, value in dsr.items():
            made[method, seed] = {
                "image_dsr": value,
                "caption_accuracy": CAPTION[method][seed],
                "text_dsr": 0.99,
                "train_s": 60.0 + seed,
                "peak_rss_mib": 1000.0,
            }
    return made


def test_numbers_only_drops_intervals_texts_and_flags() -> None:
    summary = {"a": 1, "b": 0.5, "b_low": 0.1, "b_high": 0.9, "b_n": 7, "version_torch": "2", "new": True, "c": None}
    assert numbers_only(summary) == {"a": 1.0, "b": 0.5}


def test_means_and_paired_differences_against_scipy() -> None:
    values = comparison_values(cells(), ["baseline", "tga"], "baseline")
    ours, theirs = list(TGA.values()), list(BASE.values())
    assert values["tga_image_dsr_mean"] == pytest.approx(0.55)
    low, high = stats.t.interval(0.95, 2, loc=0.55, scale=stats.sem(ours))
    assert (values["tga_image_dsr_low"], values["tga_image_dsr_high"]) == (pytest.approx(low), pytest.approx(high))
    paired = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert values["tga_minus_baseline_image_dsr_mean"] == pytest.approx(0.55 - 0.17 / 3)
    assert values["tga_minus_baseline_image_dsr_low"] == pytest.approx(paired.low)
    assert values["tga_minus_baseline_image_dsr_high"] == pytest.approx(paired.high)
    assert values["text_dsr"] == pytest.approx(0.99)
    assert values["tga_train_s_mean"] == 61.0 and values["baseline_peak_rss_mib_mean"] == 1000.0
    assert "tga_minus_baseline_train_s_mean" not in values
    assert not any(key.startswith("baseline_minus") for key in values)


def test_pairs_are_by_seed_and_not_by_place() -> None:
    made = cells()
    del made["baseline", 0]
    values = comparison_values(made, ["baseline", "tga"], "baseline")
    assert values["tga_minus_baseline_image_dsr_mean"] == pytest.approx((0.6 + 0.48) / 2)


def test_one_seed_has_means_and_no_intervals_and_says_so() -> None:
    made, methods = {key: value for key, value in cells().items() if key[1] == 1}, ["baseline", "tga"]
    values = comparison_values(made, methods, "baseline")
    assert values["tga_minus_baseline_image_dsr_mean"] == pytest.approx(0.6)
    assert not any(key.endswith(("_low", "_high")) for key in values)
    assert notes(made, methods, "baseline", ["image_dsr"])[0].startswith("One seed: there are no intervals")
    assert differences_table(made, methods, "baseline", ["image_dsr"]).rows == [["tga - baseline", "+0.600"]]


def test_notes_name_what_is_not_significant() -> None:
    said = notes(cells(), ["baseline", "tga"], "baseline", ["image_dsr", "caption_accuracy", "train_s"])
    assert said == ["Not significant (the 95 % interval holds zero): tga - baseline in caption_accuracy."]


def test_notes_name_missing_runs_and_text_rates_that_differ() -> None:
    made = cells()
    made["tga", 2]["text_dsr"] = 0.9
    del made["tga", 0]
    said = notes(made, ["baseline", "tga"], "baseline", [])
    assert said[0] == "text_dsr differs between runs (0.900 to 0.990); the mean is reported."
    assert said[1:] == ["Missing runs: tga seed 0."]


def test_tables_hold_the_shown_metrics() -> None:
    table = means_table(cells(), ["baseline", "tga"], ["image_dsr", "absent", "peak_rss_mib"])
    assert table.columns == ["method", "image_dsr", "peak_rss_mib"]
    assert table.rows[0][0] == "baseline" and table.rows[0][2] == "1000 [1000, 1000]"
    assert table.rows[1][1].startswith("0.550 [")
    metrics = ["image_dsr", "caption_accuracy", "train_s"]
    difference = differences_table(cells(), ["baseline", "tga"], "baseline", metrics)
    assert difference.columns == ["difference", "image_dsr", "caption_accuracy"]
    assert difference.rows[0][2].endswith(" n.s.") and not difference.rows[0][1].endswith("n.s.")


BOOTSTRAP = {
    ("tga", "image_dsr"): Resampled(0.5, 0.4, 0.6, 0.001, 3, 250),
    ("tga", "caption_accuracy"): Resampled(0.01, -0.02, 0.04, 0.31, 3, 250),
}


def test_bootstrap_table_and_notes_say_what_is_not_significant() -> None:
    metrics = ["image_dsr", "recognition", "caption_accuracy"]
    table = bootstrap_table(BOOTSTRAP, ["baseline", "tga", "other"], "baseline", metrics)
    assert table.columns == ["difference", "image_dsr", "caption_accuracy"]
    assert table.rows == [
        ["tga - baseline", "+0.500 [+0.400, +0.600] p 0.001", "+0.010 [-0.020, +0.040] p 0.310 n.s."],
        ["other - baseline", "-", "-"],
    ]
    said = notes(cells(), ["baseline", "tga"], "baseline", ["image_dsr", "caption_accuracy"], BOOTSTRAP)
    assert said == [
        "Not significant (the 95 % interval holds zero): tga - baseline in caption_accuracy.",
        "Not significant (bootstrap over seeds and questions, p >= 0.05): tga - baseline in caption_accuracy.",
    ]
    values = bootstrap_values(BOOTSTRAP, "baseline")
    assert values["tga_minus_baseline_image_dsr_bootstrap_low"] == 0.4 and len(values) == 6
    assert values["tga_minus_baseline_caption_accuracy_bootstrap_p"] == 0.31


def test_scenes_stand_below_each_other_and_methods_side_by_side() -> None:
    made = {key: {**numbers, "image_dsr_gun": 0.5, "image_dsr_knife": 0.25} for key, numbers in cells().items()}
    table = groups_table(made, ["tga", "baseline"], "image_dsr", ["image_dsr_gun", "image_dsr_knife", "image_dsr_none"])
    assert table is not None and table.columns == ["group", "tga", "baseline"]
    assert [row[0] for row in table.rows] == ["all", "gun", "knife"]
    assert table.rows[1][1] == "0.500 [0.500, 0.500]" and table.rows[0][2].startswith("0.057 [")
    assert groups_table(cells(), ["tga"], "image_dsr", ["image_dsr_gun"]) is None


def test_a_mean_over_the_layers_that_a_run_has() -> None:
    numbers = {f"gap_layer_{layer}": float(layer) for layer in (0, 1, 2, 10)} | {"gap_layer_x": 9.0, "gap_layer_": 7.0}
    assert layer_mean(numbers, "gap_layer_{layer}", [0, 10]) == 5.0
    assert layer_mean(numbers, "gap_layer_{layer}", [2, 5]) == 2.0
    assert layer_mean(numbers, "gap_layer_{layer}", None) == pytest.approx(13 / 3)
    assert layer_mean(numbers, "gap_layer_{layer}", [7]) is None
    assert layer_mean(numbers, "other_{layer}", None) is None
    assert layer_mean({"l2_layer_3_raw": 4.0}, "l2_layer_{layer}_raw", None) == 4.0
