"""The benchmark of steering: a tiny shape runs, every arm corrects what it should, the turns rotate."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from tools import bench_steering
from tools.bench_steering import DECODING, Bench, llava_of_shape, turns

SHAPE = ["--width", "64", "--layers", "2", "--image-tokens", "2", "--prefix", "3", "--words", "4"]


def test_the_command_prints_flat_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--tokens", "3", "--prompts", "1", "--warm-up", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_steering", "--json", *SHAPE, *short])
    bench_steering.main()
    values = json.loads(capsys.readouterr().out)
    ratios = [key for key in values if key.endswith("_time") and not key.startswith("goal")]
    assert set(ratios) == {
        "dataset_over_plain_decode_time",
        "sample_over_plain_decode_time",
        "dataset_over_plain_prompt_time",
        "sample_over_plain_prompt_time",
        "sample_first_over_plain_prompt_time",
    }
    assert all(values[key] > 0.1 for key in ratios) and values["plain_decode_s"] > 0
    assert values["prompt_tokens"] == 3 + 4 + 4


@torch.inference_mode()
def test_the_arms_correct_what_they_should() -> None:
    torch.manual_seed(0)
    bench = Bench(llava_of_shape(64, 2, 2), 2, prefix=3, words=4)
    keys = {arm: bench.prompt(arm)[0].layers[1].keys for arm in (*DECODING, "sample_first")}
    assert not torch.allclose(keys["plain"], keys["dataset"], atol=1e-4)
    assert not torch.allclose(keys["plain"], keys["sample"], atol=1e-6)
    torch.testing.assert_close(keys["sample"], keys["sample_first"])


def test_every_arm_takes_every_place() -> None:
    order = turns(DECODING, 6)
    assert {turn[0] for turn in order} == set(DECODING) == {turn[2] for turn in order}
    assert all(sorted(turn) == sorted(DECODING) for turn in order)
