"""The benchmark of a step at a tiny shape: what it compares is the same work, and its figures are there."""

from __future__ import annotations

import math

import pytest
import torch

from tga.vlm.families import LLAVA
from tga.vlm.freezing import freeze
from tools import bench_step
from tools.bench_steering import llava_of_shape


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> bench_step.Bench:
    for name, value in {"LAYERS": 3, "ALIGNED": (1, 2), "SIDE": 2, "IMAGE": 4}.items():
        monkeypatch.setattr(bench_step, name, value)
    torch.manual_seed(0)
    model = llava_of_shape(64, 3, 2, vocabulary=100)
    freeze(model, LLAVA, ["projector"])
    return bench_step.Bench(model, torch.device("cpu"))


def test_the_arms_do_the_same_work(bench: bench_step.Bench) -> None:
    losses = {arm: bench.losses(arm, 2, (1, 2))() for arm in bench_step.ARMS}
    assert set(losses["plain"]) == set(losses["hf"]) == {"lm"}
    for arm in bench_step.ARMS:
        torch.testing.assert_close(losses[arm]["lm"], losses["hf"]["lm"], rtol=1e-5, atol=1e-5)
    assert set(losses["stored"]) == set(losses["online"]) == {"lm", "tga_pair", "tga_rank"}
    assert losses["stored"]["tga_rank"] > 0
    runs: list[int] = []
    bench.model.model.language_model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    bench.step("stored", 1)()
    assert len(runs) == 1
    bench.step("online", 1)()
    assert len(runs) == 3


def test_the_figures(bench: bench_step.Bench) -> None:
    values = bench_step.measure(bench, batch=1, turns=2)
    assert set(bench_step.LIMITS) <= set(values)
    assert all(math.isfinite(value) and value > 0 for value in values.values())
    assert 0.5 < values["stored_over_plain_peak_memory"] < 2 and values["online_3_layers_peak_mib"] > 50
