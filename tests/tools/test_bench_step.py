"""The benchmark of a step at a tiny shape: what it compares is the same work, and its figures are there."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tga.vlm.families import LLAVA, component
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


def test_the_batch_is_the_largest_power_of_two_that_every_arm_fits(
    bench: bench_step.Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[tuple[str, int]] = []

    def step(arm: str, size: int) -> Callable[[], None]:
        def run() -> None:
            tried.append((arm, size))
            if size > (11 if arm == "hf" else 16):
                raise torch.OutOfMemoryError

        return run

    monkeypatch.setattr(bench, "step", step)
    assert bench_step.largest_batch(bench) == 8
    assert tried[-1] == ("hf", 16) and {arm for arm, _ in tried} == set(bench_step.ARMS)
    with pytest.raises(SystemExit):
        bench_step.main(["--batch", "0"])
    assert "--batch 0 is for a GPU" in capsys.readouterr().err


def test_llava7b_has_the_shapes_of_llava7b() -> None:
    """Laid out without its weights: 6.7 G in the decoder with its head, 0.3 G in the tower, 21 M in the projector."""
    model = bench_step.llava7b(torch.device("meta"), torch.bfloat16)
    parts = {name: component(model, getattr(LLAVA, name)) for name in ("decoder_layers", "vision_tower", "projector")}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert sizes["projector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert sizes["decoder_layers"] == 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    assert 0.30e9 < sizes["vision_tower"] < 0.31e9
    assert next(model.parameters()).dtype == torch.bfloat16
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    assert side**2 == bench_step.IMAGE == 576


def test_the_figures(bench: bench_step.Bench) -> None:
    values = bench_step.measure(bench, batch=1, turns=2)
    assert set(bench_step.LIMITS) <= set(values)
    assert all(math.isfinite(value) and value > 0 for value in values.values())
    assert 0.5 < values["stored_over_plain_peak_memory"] < 2 and values["online_3_layers_peak_mib"] > 50
