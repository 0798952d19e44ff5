"""The paired bootstrap against a plain loop, against theory, and in what it pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tga.evaluation import bootstrap
from tga.evaluation.bootstrap import bootstrap_differences, difference_table, paired_bootstrap, read_judgements


def table(seeds: int, questions: int, shift: float, seed: int = 0) -> np.ndarray:
    """Differences of two methods' answers: -1, 0 and 1, of mean `shift`, some questions easier than others."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(0.0, 0.8, size=questions)
    ours = rng.random((seeds, questions)) < 1 / (1 + np.exp(-(ease + 2 * shift)))
    theirs = rng.random((seeds, questions)) < 1 / (1 + np.exp(-(ease - 2 * shift)))
    return ours.astype(int) - theirs.astype(int)


def test_against_a_plain_loop_over_drawn_tables() -> None:
    differences = table(4, 60, 0.1)
    rng = np.random.default_rng(1)
    means = []
    for _ in range(20_000):
        seeds = rng.integers(0, 4, size=3)  # one less than there are
        questions = rng.integers(0, 60, size=60)
        means.append(differences[np.ix_(seeds, questions)].mean())
    found = paired_bootstrap(differences, resamples=20_000, seed=2)
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.mean == differences.mean()
    # The standard error of a 2.5 % quantile of 20,000 draws is about 0.02 standard deviations.
    tolerance = 0.1 * np.std(means)
    assert found.low == pytest.approx(low, abs=tolerance) and found.high == pytest.approx(high, abs=tolerance)
    p = 2 * min(np.mean(np.array(means) <= 0), np.mean(np.array(means) >= 0))
    assert found.p == pytest.approx(p, abs=0.02)
    assert (found.seeds, found.questions) == (4, 60)


def test_one_seed_draws_questions_alone() -> None:
    differences = table(1, 400, 0.05)
    found = paired_bootstrap(differences, resamples=8_000)
    error = differences.std() / math.sqrt(400)
    assert found.low == pytest.approx(differences.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(differences.mean() + 1.96 * error, abs=0.15 * error)


def test_the_draws_repeat_and_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = table(3, 50, 0.0)
    first = paired_bootstrap(differences)
    monkeypatch.setattr(bootstrap, "BLOCK", 50 * 7)
    assert paired_bootstrap(differences) == first
    assert paired_bootstrap(differences, seed=1) != first


def test_p_is_small_for_a_clear_difference_and_one_for_none() -> None:
    clear = paired_bootstrap(np.ones((3, 20), dtype=int))
    assert (clear.low, clear.high, clear.significant) == (1.0, 1.0, True)
    assert clear.p == pytest.approx(2 / 2001)
    none = paired_bootstrap(np.zeros((3, 20), dtype=int))
    assert (none.mean, none.low, none.high, none.p, none.significant) == (0.0, 0.0, 0.0, 1.0, False)
    mirrored = paired_bootstrap(-table(3, 40, 0.1)).p
    assert mirrored == pytest.approx(paired_bootstrap(table(3, 40, 0.1)).p, abs=0.02)


def test_p_is_that_small_as_often_as_it_says() -> None:
    """Where the methods do not differ, p < 0.05 in about 5 % of the tables (a little more: few seeds)."""
    draws = [paired_bootstrap(table(8, 80, 0.0, seed), resamples=400).significant for seed in range(200)]
    assert 0.0 <= np.mean(draws) <= 0.12


def test_few_seeds_that_differ_are_not_taken_for_many() -> None:
    """Projectors of one method differ from seed to seed; three of them must not prove a difference that is theirs."""
    rng, significant = np.random.default_rng(0), []
    for repetition in range(200):
        ease, ours, theirs = rng.normal(size=100), rng.normal(scale=0.4, size=3), rng.normal(scale=0.4, size=3)
        ours, theirs = (rng.random((3, 100)) < 1 / (1 + np.exp(-(ease + s[:, None]))) for s in (ours, theirs))
        found = paired_bootstrap(ours.astype(int) - theirs.astype(int), resamples=400, seed=repetition)
        significant.append(found.significant)
    assert np.mean(significant) <= 0.1


def test_pairs_are_of_the_questions_that_all_runs_answered() -> None:
    ours = [{"a": True, "b": True, "c": False}, {"a": True, "b": False, "d": True}]
    theirs = [{"a": False, "b": True, "c": True}, {"a": True, "b": True, "c": True}]
    made = difference_table(list(zip(ours, theirs, strict=True)))
    assert made is not None and made.tolist() == [[1, 0], [0, -1]]
    assert difference_table([({"a": True}, {"b": True})]) is None and difference_table([]) is None


def test_answers_are_read_by_rate_and_by_group(tmp_path: Path) -> None:
    rows = [
        {"metric": "image_dsr", "id": "1", "group": "Insulting Gesture", "judged": True},
        {"metric": "image_dsr", "id": "2", "group": "", "judged": False},
        {"metric": "vqa", "id": "1", "group": "gun", "judged": True},
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_judgements(tmp_path / "answers.jsonl", ["image_dsr"]) == {
        "image_dsr": {"1": True, "2": False},
        "image_dsr_insulting_gesture": {"1": True},
        "vqa": {"1": True},
    }
    assert read_judgements(tmp_path / "absent.jsonl") == {}


def test_methods_are_compared_over_the_seeds_that_both_have() -> None:
    judged = {
        ("baseline", 0): {"dsr": {"a": False, "b": False}, "text": {"a": True}},
        ("baseline", 1): {"dsr": {"a": False, "b": True}},
        ("tga", 0): {"dsr": {"a": True, "b": True}, "text": {"a": True}},
        ("tga", 1): {"dsr": {"a": True, "b": True}},
        ("tga", 2): {"dsr": {"a": False, "b": False}},
    }
    found = bootstrap_differences(judged, ["baseline", "tga", "absent"], "baseline", leave_out=["text"])
    assert set(found) == {("tga", "dsr")}
    assert found["tga", "dsr"].mean == 0.75 and found["tga", "dsr"].seeds == 2
