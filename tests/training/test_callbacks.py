"""What a run shows while it trains: loss terms, cosines, samples/s and the time left, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console

from tga.training.callbacks import ProgressBar
from tga.training.throughput import Throughput

OUTPUTS = {
    "terms": {"lm": torch.tensor(2.5), "tga_pair": torch.tensor(-0.25), "tga_rank": torch.tensor(0.75)},
    "figures": {"tga_cosine": torch.tensor(0.125), "tga_retrieved_cosine": torch.tensor(float("nan"))},
}


def shown(console: Console, *, first: int, steps: range, total: int, seconds: float) -> str:
    """What the bar has written after these steps, at a given time since the start."""
    throughput = Throughput(lambda: 0.0)
    bar = ProgressBar(throughput, total, console=console, line_every_s=0.0)
    trainer: Any = SimpleNamespace(global_step=first, is_last_batch=False)
    bar.on_train_start(trainer, None)  # type: ignore[arg-type]
    throughput.seconds, throughput.samples = seconds, 8 * len(steps)
    for step in steps:
        trainer.global_step, trainer.is_last_batch = step, step == steps[-1]
        bar.on_train_batch_end(trainer, None, OUTPUTS, None, step)  # type: ignore[arg-type]
    bar.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_line_where_there_is_no_terminal() -> None:
    """Four steps in 20 seconds, after a resume at step 10: 86 more at the same pace."""
    console = Console(file=io.StringIO(), width=200)
    text = shown(console, first=10, steps=range(11, 15), total=100, seconds=20.0)
    assert text.splitlines()[-1] == (
        "step 14/100  lm 2.500 tga_pair -0.250 tga_rank 0.750 tga_cosine 0.125  1.6 samples/s  ETA 0:07:10"
    )


def test_no_pace_is_known_before_the_first_step() -> None:
    console = Console(file=io.StringIO(), width=200)
    assert shown(console, first=3, steps=range(3, 4), total=9, seconds=1.0).endswith("ETA -:--:--\n")


def test_a_bar_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(console, first=0, steps=range(1, 5), total=4, seconds=20.0))
    last = text.strip().splitlines()[-1]
    for part in ("training", "4/4", "0:00:0", "tga_pair -0.250", "tga_cosine 0.125", "1.6 samples/s"):
        assert part in last, text
    assert "nan" not in text
