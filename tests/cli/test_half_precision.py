"""Bfloat16 on a CPU: when it is measured, and that the measurement is one of this machine and short."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from tga.cli.half_precision import bfloat16_on_cpu, product_s


def config(accelerator: str, precision: str) -> dict[str, Any]:
    return {"training": {"accelerator": accelerator, "precision": precision}, "model": {"dtype": "float32"}}


@pytest.mark.parametrize(
    ("accelerator", "precision", "gpu", "measured"),
    [
        ("cpu", "bf16-mixed", True, True),
        ("auto", "bf16-mixed", False, True),
        ("auto", "bf16-mixed", True, False),
        ("cuda", "bf16-mixed", True, False),
        ("cpu", "32-true", False, False),
    ],
)
def test_it_is_looked_at_where_the_run_would_compute_in_it_on_a_cpu(
    accelerator: str, precision: str, gpu: bool, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert (bfloat16_on_cpu(config(accelerator, precision)) is not None) == measured


def test_the_measurement_is_of_this_cpu_and_short() -> None:
    threads, started = torch.get_num_threads(), time.thread_time()
    taken = [product_s(dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert time.thread_time() - started < 3 and torch.get_num_threads() == threads
    assert all(2 * 320**3 / 1e13 < seconds < 1 for seconds in taken)  # no core does 10 TFLOP/s in a product this small
    state = torch.get_rng_state()
    product_s(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
