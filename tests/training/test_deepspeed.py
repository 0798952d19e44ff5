"""DeepSpeed where it is installed: two processes on a CPU train as one that accumulates, to the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_tiny_llava_json
from tests.training.test_distributed import losses, run, weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    write_tiny_llava_json(tmp_path, n=16)  # DeepSpeed leaves out a last step that is not whole
    kinds: dict[str, dict[str, Any]] = {
        "projector": {},
        "stage2": {"train": ["projector", "language_model"], "gradient_clip_norm": 0.5},
        "accumulated": {"accumulate_batches": 2},
    }
    common = {"batch_size": 2, "epochs": 2, "save_every": 3}
    alone = [
        {**common, **kind, "run": f"{name}-one", "accumulate_batches": 2 * kind.get("accumulate_batches", 1)}
        for name, kind in kinds.items()
    ]
    together = [{**common, **kind, "run": f"{name}-two", "strategy": "deepspeed"} for name, kind in kinds.items()]
    run(tmp_path, alone, processes=1)
    program = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "tests.training.launched_deepspeed", str(tmp_path), json.dumps(together),
    ]  # fmt: skip
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    ended = subprocess.run(program, cwd=ROOT, env=variables, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()[-4000:]
    for name in kinds:
        one, two = tmp_path / f"{name}-one", tmp_path / f"{name}-two"
        assert losses(two) == pytest.approx(losses(one), rel=1e-5), name
        there, here = weights(one), weights(two)
        assert set(here) == set(there)
        for key, value in there.items():
            torch.testing.assert_close(here[key], value, rtol=1e-3, atol=1e-5)
