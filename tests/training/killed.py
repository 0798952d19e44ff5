"""A training process that may be killed: `python -m tests.training.killed WORK RUN BATCH`.

Trains the tiny model on WORK/train.json into RUN. When batch number BATCH (from 1; 0: never) is to be prepared, it
sends itself SIGKILL: nothing is flushed, closed or said.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.tiny import tiny_llava
from tga.alignment.tga import TGA
from tga.data.collate import Batch, Collator
from tga.data.llava_json import load_llava_json
from tga.data.sample import Sample
from tga.training.run import fit
from tga.training.settings import Calibration, FitResult, TrainSettings
from tga.vlm.families import family_of

SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 3, "save_every": 2, "log_every": 1, "gradient_norm_every": 3, "accelerator": "cpu",
    "seed": 5,
}  # fmt: skip


class Deadly(Collator):
    """Kills the process when it is asked for training batch number `at`."""

    at = 0
    asked = -1  # fit collates one sample to check it

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        self.asked += 1
        if self.at and self.asked == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(samples)


def train(
    work: Path,
    run_dir: Path,
    *,
    kill_at: int = 0,
    ckpt_path: str | None = None,
    told: Mapping[str, Any] | None = None,
    **changed: Any,
) -> FitResult:
    """Three epochs of four batches (the last is short), a checkpoint every second step, centred TGA with neighbours.

    told: more hyper-parameters. changed: settings other than these.
    """
    samples = load_llava_json(work / "train.json", work / "images")
    texts = [sample.caption or "" for sample in samples]
    samples = [dataclasses.replace(s, neighbours=(texts[i - 1],)) for i, s in enumerate(samples)]
    model, processor = tiny_llava()
    collator = Deadly(processor, "plain", image_tokens=4, retrieved="loss", max_length=128)
    collator.at = kill_at
    return fit(
        model,
        family_of(model),
        collator,
        samples,
        [TGA((0, 1, 3))],
        TrainSettings(**{**SETTINGS, **changed}),
        run_dir,
        train=["projector"],
        centred=True,
        calibration=Calibration(eps=0.1, output_std_ratio=1.0, images=6),
        hyper_parameters={"base_model": {"vlm": "tiny"}, **(told or {})},
        ckpt_path=ckpt_path,
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), kill_at=int(sys.argv[3]))
