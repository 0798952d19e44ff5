"""Many processes: who may start, what the first one decides for all, and two processes against one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tests.tiny_clip import random_captions, write_tiny_clip
from tga.errors import UserError
from tga.training import distributed
from tga.training.callbacks import read_metrics
from tga.training.checkpoint import latest_checkpoint, read_checkpoint
from tga.training.distributed import Processes, check_deepspeed, launched, means, start_processes
from tga.training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999",
}  # fmt: skip


def environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in (*TORCHRUN, "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch)
    assert launched() == Processes() and launched().first and launched().nodes == 1
    environment(monkeypatch, **TORCHRUN)
    found = launched()
    assert (found.rank, found.size, found.local_rank, found.local_size, found.nodes) == (5, 8, 1, 4, 2)
    assert not found.first


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed"])
def test_processes_that_nobody_launched_are_refused(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch)
    with pytest.raises(UserError, match=f"strategy={strategy}.*torchrun --nproc-per-node"):
        start_processes(strategy, "cpu")
    with pytest.raises(UserError, match="sweep.*one torchrun for each run"):
        start_processes(strategy, "cpu", sweep=True)


def test_many_processes_for_one_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch)
    assert start_processes("single", "cpu", sweep=True) == Processes()
    with pytest.raises(UserError, match="single, ddp, fsdp2, deepspeed"):
        start_processes("many", "cpu")
    environment(monkeypatch, **TORCHRUN)
    with pytest.raises(UserError, match="8 processes were launched.*training=ddp"):
        start_processes("single", "cpu")


def test_deepspeed_is_refused_where_it_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install deepspeed, or training=fsdp2"):
        check_deepspeed("auto")
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_deepspeed("auto")
    with pytest.raises(UserError, match="CUDA devices alone.*accelerator=cpu.*training=fsdp2"):
        check_deepspeed("cpu")


def test_the_guide_gradient_is_not_measured_on_shares() -> None:
    with pytest.raises(UserError, match="training.gradient_norm_every=0"):
        TrainSettings(strategy="fsdp2")
    assert TrainSettings(strategy="fsdp2", gradient_norm_every=0).strategy == "fsdp2"


def test_means_leave_out_what_is_not_there() -> None:
    nan = torch.tensor(math.nan)
    parts = [{"a": torch.tensor(1.0), "b": nan, "c": nan}, {"a": torch.tensor(4.0), "b": torch.tensor(2.0), "c": nan}]
    found = means(parts)
    assert (found["a"], found["b"]) == (2.5, 2.0) and math.isnan(found["c"])
    assert distributed.agreed("x") == "x" and distributed.total(2.0, torch.device("cpu")) == 2.0


def run(work: Path, trainings: list[dict[str, Any]], *, processes: int) -> None:
    """Several trainings in one launch: a process takes longer to start than to train the tiny model."""
    program = [sys.executable, "-m", "tests.training.launched"]
    if processes > 1:
        program = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
            "-m", "tests.training.launched",
        ]  # fmt: skip
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*program, str(work), json.dumps(trainings)], cwd=ROOT, env=variables, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()[-4000:]


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run_dir / "metrics.jsonl")]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(latest_checkpoint(run_dir / "checkpoints")).weights


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates_two_batches(tmp_path: Path) -> None:
    """DDP and FSDP2, the projector alone and the language model beside it, grouped batches, and a resume."""
    write_tiny_llava_json(tmp_path, n=18)
    both = ["projector", "language_model"]
    kinds: dict[str, dict[str, Any]] = {
        "projector": {},
        "stage2": {"train": both, "gradient_clip_norm": 0.5, "projector_learning_rate": 2e-3},
        "grouped": {"grouping": "modality_length"},
        "lora": {"lora": {"rank": 4, "targets": ["q_proj", "v_proj"]}},
    }
    common = {"batch_size": 2, "epochs": 2, "save_every": 3, "keep_checkpoints": 9}
    alone = [{**common, **kind, "run": f"{name}-one", "accumulate_batches": 2} for name, kind in kinds.items()]
    alone.append({**common, **kinds["stage2"], "run": "bf16-one", "accumulate_batches": 2, "precision": "bf16-mixed",
                  "dtype": "bfloat16"})  # fmt: skip
    together = [
        {**common, **kind, "run": f"{name}-{strategy}", "strategy": strategy}
        for name, kind in kinds.items()
        for strategy in ("ddp", "fsdp2")
    ]
    together.append({**common, **kinds["stage2"], "run": "bf16-fsdp2", "strategy": "fsdp2", "precision": "bf16-mixed",
                     "dtype": "bfloat16"})  # fmt: skip
    again = [
        {**common, **kinds["stage2"], "run": f"again-{strategy}", "strategy": strategy,
         "ckpt_path": str(tmp_path / f"stage2-{strategy}" / "checkpoints" / "step-00000003.ckpt")}
        for strategy in ("ddp", "fsdp2")
    ]  # fmt: skip
    run(tmp_path, alone, processes=1)
    run(tmp_path, [*together, *again], processes=2)
    for training in together:
        expected, found = (tmp_path / f"{training['run'].split('-')[0]}-one"), tmp_path / training["run"]
        tolerance = 2e-2 if "bf16" in training["run"] else 1e-5  # bf16: sums of gradients round in another order
        assert len(losses(found)) == len(losses(expected)) == 9
        assert losses(found) == pytest.approx(losses(expected), rel=tolerance), training["run"]
        if "bf16" in training["run"]:
            continue
        there, here = weights(expected), weights(found)
        assert set(there) == set(here)
        for name, value in there.items():
            torch.testing.assert_close(here[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    for strategy in ("ddp", "fsdp2"):
        straight, resumed = tmp_path / f"stage2-{strategy}", tmp_path / f"again-{strategy}"
        assert losses(resumed) == losses(straight)[3:]
        assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(straight).items())


@pytest.mark.slow
def test_tga_train_under_torchrun(tmp_path: Path) -> None:
    """The command itself: index and targets made once, one run directory whatever the clocks say, an export."""
    write_tiny_parts(tmp_path)
    write_tiny_llava_json(tmp_path)
    write_tiny_clip(tmp_path / "retriever")
    (tmp_path / "captions.txt").write_text("\n".join(random_captions(30)))
    arguments = [
        "model.llm=llm", "model.vision_tower=vision_tower", "data.json=train.json", "data.image_root=images",
        "alignment=tga", "alignment.layers=[1,2]", "alignment.targets=stored", "data.targets_dir=targets",
        "data.captions=captions.txt", "data.index_dir=index", "encoder.name=local-dir:retriever", "data.neighbours_k=3",
        "training=fsdp2", "training.batch_size=2", "training.accelerator=cpu", "name=x",
    ]  # fmt: skip
    program = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tga.cli.train",
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*program, *arguments], cwd=tmp_path, env=variables, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()[-4000:]
    (run_dir,) = (tmp_path / "outputs" / "train" / "x").iterdir()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["processes"], summary["steps"], summary["samples"]) == (2, 2, 8)
    assert (run_dir / "hf" / "config.json").is_file() and summary["neighbours_s"] > 0 and summary["targets_s"] > 0
    assert ended.stdout.decode().count("Output directory") == 1
    assert "--nproc-per-node=2 -m tga.cli.train" in ended.stderr.decode()
