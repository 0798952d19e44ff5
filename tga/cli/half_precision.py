"""Whether a run would compute in bfloat16 on a CPU that has no instructions for it.

Such a CPU takes many times as long for a product in bfloat16 as for one in float32, and nothing but the clock shows
it. So it is measured, in milliseconds, on a small product, and told before anything else happens. What counts is the
processor time of one thread, which other programs on the machine change little.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from tga.cli.checks import Finding

SIZE = 320  # rows and columns of the product: below about 200 other, faster paths are taken than a model's layers take
REPEATS = 2
NOTICEABLE = 1.5  # times as long as float32


def bfloat16_on_cpu(values: Mapping[str, Any]) -> Finding | None:
    """How much longer than float32 bfloat16 takes on the CPU that a run would train on.

    Args:
        values: the plain config of tga-train.

    Returns:
        None where the run trains on a GPU or in float32; a warning where bfloat16 is the slower one.
    """
    training = values["training"]
    on_cpu = training["accelerator"] == "cpu" or (training["accelerator"] == "auto" and not torch.cuda.is_available())
    if not on_cpu or training["precision"] != "bf16-mixed":
        return None
    half, single = (product_s(dtype) for dtype in (torch.bfloat16, torch.float32))
    found = f"{1e3 * half:.3g} ms for a matrix product that takes {1e3 * single:.3g} ms in float32"
    if half < NOTICEABLE * single:
        return Finding("bfloat16 on this CPU", found)
    remedy = "training.precision=32-true"
    if values["model"]["dtype"] != "float32":
        remedy += " model.dtype=float32"
    warning = (
        f"bfloat16 takes about {half / single:.0f} times as long as float32 in a matrix product on this CPU "
        f"({1e3 * half:.3g} against {1e3 * single:.3g} ms), and this run would compute in it: {remedy} is faster here"
    )
    return Finding("bfloat16 on this CPU", found, warning=warning)


def product_s(dtype: torch.dtype) -> float:
    """Seconds of one thread for a small square matrix product on the CPU, the best of a few."""
    left, right = (torch.full((SIZE, SIZE), 0.5, dtype=dtype, device="cpu") for _ in range(2))  # draws nothing
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left @ right  # the first one sets things up
        return min(_thread_s(left, right) for _ in range(REPEATS))
    finally:
        torch.set_num_threads(threads)


def _thread_s(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.thread_time()
    left @ right
    return time.thread_time() - started
