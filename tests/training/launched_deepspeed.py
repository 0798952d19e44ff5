"""`tests.training.launched` under DeepSpeed on CPUs.

    torchrun --nproc-per-node=2 -m tests.training.launched_deepspeed WORK JSON

Lightning offers its DeepSpeed strategy on CUDA alone, and DeepSpeed itself runs on CPUs as well (DS_ACCELERATOR=cpu):
the refusal is lifted here, so that our side of it is tried where there is no GPU.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import deepspeed as strategy

from tests.training.launched import train
from tga.training.distributed import start_processes, stop_processes


def lift_the_refusal() -> None:
    """Let CPUs pass for GPUs in the three places that ask."""
    strategy.CUDAAccelerator = CPUAccelerator  # type: ignore[misc]
    strategy._validate_device_index_selection = lambda *_: None
    initialize = deepspeed.initialize

    def with_rank(args: Any, **options: Any) -> Any:
        args.device_rank = int(os.environ["LOCAL_RANK"])  # a CPU has no number
        return initialize(args=args, **options)

    deepspeed.initialize = with_rank


if __name__ == "__main__":
    torch.set_num_threads(1)
    lift_the_refusal()
    started = start_processes("deepspeed", "cpu")
    for training in json.loads(sys.argv[2]):
        train(Path(sys.argv[1]), training, started)
    stop_processes()
