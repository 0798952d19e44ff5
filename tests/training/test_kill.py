"""kill -9 from outside within an epoch, with workers, accumulation and grouping: the rest is bit-identical."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_tiny_llava_json
from tga.training.callbacks import read_metrics
from tga.training.checkpoint import latest_checkpoint, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {
    "batch_size": 2, "accumulate_batches": 2, "epochs": 12, "num_workers": 2, "grouping": "modality_length",
    "train": ["projector", "language_model"], "projector_learning_rate": 2e-3, "gradient_clip_norm": 1.0,
    "save_every": 3, "keep_checkpoints": 2,
}  # fmt: skip
TIMES = ("samples", "samples_per_s", "peak_rss_mib")


def start(work: Path, **options: Any) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "tests.training.launched", str(work), json.dumps([{**OPTIONS, **options}])]
    return subprocess.Popen(program, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()[-4000:]


def compared(run_dir: Path) -> list[dict[str, float]]:
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    write_tiny_llava_json(tmp_path, n=19)
    straight, killed = start(tmp_path, run="straight"), start(tmp_path, run="killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while len(read_metrics(metrics)) < 8 and killed.poll() is None:  # epochs have 10 batches: step 8 is in the second
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    at = len(read_metrics(metrics))
    checkpoints = sorted((tmp_path / "killed" / "checkpoints").glob("step-*.ckpt"))
    assert 8 <= at < 60 and 1 <= len(checkpoints) <= 2
    assert all(read_checkpoint(path).step % 3 == 0 for path in checkpoints)  # each that is there is whole
    finished(start(tmp_path, run="killed", ckpt_path="last"))
    finished(straight)
    expected = compared(tmp_path / "straight")
    assert len(expected) == 60 and compared(tmp_path / "killed") == expected
    there, here = (
        read_checkpoint(latest_checkpoint(tmp_path / name / "checkpoints")) for name in ("straight", "killed")
    )
    assert set(there.weights) == set(here.weights) and len(there.weights) > 20
    assert all(torch.equal(here.weights[name], value) for name, value in there.weights.items())
