"""Whether a run would compute in bfloat16 on a CPU that has no instructions for it.

Such a CPU takes many times as long for a product in bfloat16 as for one in float32, and nothing but the clock shows
it. So it is measured, in milliseconds, on a small product, and told before anything else happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tga.cli.checks import Finding
from tga.training.throughput import matmul_flops_per_s

SIZE = 256  # of the product: tens of milliseconds in bfloat16 where that is emulated, less than one in float32
SECONDS = 0.05
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
    half, single = (cpu_flops_per_s(dtype) for dtype in (torch.bfloat16, torch.float32))
    found = f"{half / 1e9:.1f} GFLOP/s, float32 {single / 1e9:.1f} GFLOP/s"
    if single < NOTICEABLE * half:
        return Finding("bfloat16 on this CPU", found)
    remedy = "training.precision=32-true"
    if values["model"]["dtype"] != "float32":
        remedy += " model.dtype=float32"
    warning = (
        f"bfloat16 takes {single / half:.1f} times as long as float32 in a matrix product on this CPU ({found}), and "
        f"the run would compute in it: {remedy} is faster here"
    )
    return Finding("bfloat16 on this CPU", found, warning=warning)


def cpu_flops_per_s(dtype: torch.dtype) -> float:
    """FLOPs per second of a small matrix product on the CPU."""
    return matmul_flops_per_s(torch.device("cpu"), dtype, seconds=SECONDS, size=SIZE)
