"""Trainings of the tiny model as one of many processes.

    torchrun --nproc-per-node=2 -m tests.training.launched WORK JSON

JSON is a list of trainings, one after the other, each an object of settings with `run` (the directory below WORK),
`train` (parts), `dtype` (of the frozen parts), `ckpt_path` and `lora`. WORK holds the data of `write_tiny_llava_json`.
Without torchrun it is one process.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tests.tiny import tiny_llava
from tga.alignment.tga import TGA
from tga.data.collate import Collator
from tga.data.llava_json import load_llava_json
from tga.data.sample import Sample
from tga.training.distributed import Processes, start_processes, stop_processes
from tga.training.lora import LoraSettings
from tga.training.run import fit
from tga.training.settings import FitResult, TrainSettings
from tga.vlm.families import family_of


def samples_of(work: Path) -> list[Sample]:
    """Every third sample has no picture, and every sample with one has a neighbour."""
    samples = load_llava_json(work / "train.json", work / "images")
    texts = [sample.caption or "" for sample in samples]
    return [
        Sample(sample.id, (), sample.turns, None)
        if i % 3 == 2
        else dataclasses.replace(sample, neighbours=(texts[i - 1],))
        for i, sample in enumerate(samples)
    ]


def train(work: Path, options: dict[str, Any], processes: Processes) -> FitResult:
    """TGA, centred, over the tiny model."""
    run, parts, ckpt_path = options.pop("run"), options.pop("train", ["projector"]), options.pop("ckpt_path", None)
    dtype, lora = getattr(torch, options.pop("dtype", "float32")), options.pop("lora", None)
    settings = TrainSettings(**{"accelerator": "cpu", "log_every": 1, "seed": 3, "gradient_norm_every": 0, **options})
    model, processor = tiny_llava()
    collator = Collator(processor, "plain", image_tokens=4, retrieved="loss", max_length=128)
    return fit(
        model.to(dtype), family_of(model), collator, samples_of(work), [TGA((0, 1, 3))], settings, work / run,
        train=parts, centred=True, calibration=None, hyper_parameters={"base_model": {"vlm": "tiny"}, "lora": lora},
        ckpt_path=ckpt_path, console=Console(stderr=True, quiet=True), processes=processes,
        lora=None if lora is None else LoraSettings(**lora),
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainings = json.loads(sys.argv[2])
    started = start_processes(trainings[0].get("strategy", "single"), "cpu")
    for training in trainings:
        train(Path(sys.argv[1]), training, started)
    stop_processes()
