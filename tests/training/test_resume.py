"""A run that is killed and continued gives, bit for bit, the losses and weights of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_llava, write_tiny_llava_json
from tests.training.killed import train
from tga.data.datamodule import ResumableLoader
from tga.data.sampling import SeededBatches
from tga.errors import UserError
from tga.training.callbacks import read_metrics
from tga.training.checkpoint import latest_checkpoint, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("samples", "samples_per_s", "peak_rss_mib")
# The norm is measured anew at a process' first step, beside every third.
NOT_COMPARED = (*TIMES, "guide_gradient_norm")


def compared(run_dir: Path) -> list[dict[str, float]]:
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in NOT_COMPARED} for row in rows]


def test_kill_in_mid_epoch_and_resume_gives_the_same_losses(tmp_path: Path) -> None:
    write_tiny_llava_json(tmp_path, n=10)
    train(tmp_path, tmp_path / "straight")
    expected = compared(tmp_path / "straight")
    assert [row["step"] for row in expected] == list(range(1, 13))
    assert len({row["loss"] for row in expected}) == 12

    # Epochs have 4 batches: batch 8 is the last of the second epoch, step 7 was done, the checkpoint is of step 6.
    command = [sys.executable, "-m", "tests.training.killed", str(tmp_path), str(tmp_path / "killed"), "8"]
    dead = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()
    assert [row["step"] for row in read_metrics(tmp_path / "killed" / "metrics.jsonl")] == list(range(1, 8))
    assert latest_checkpoint(tmp_path / "killed" / "checkpoints").name == "step-00000006.ckpt"
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # what a kill in mid-write leaves

    result = train(tmp_path, tmp_path / "killed", ckpt_path="last")
    assert result.steps == 12 and result.samples == 3 + 1 + 10
    assert compared(tmp_path / "killed") == expected
    there = read_checkpoint(latest_checkpoint(tmp_path / "straight" / "checkpoints"))
    here = read_checkpoint(latest_checkpoint(tmp_path / "killed" / "checkpoints"))
    assert all(torch.equal(here.weights[name], value) for name, value in there.weights.items())
    assert there.centre is not None and here.centre is not None and torch.equal(there.centre, here.centre)


def test_workers_that_run_ahead_do_not_move_the_position() -> None:
    batches = SeededBatches(samples=10, batch_size=3, epochs=2, seed=1)
    everything = [batch.tolist() for batch in ResumableLoader(range(10), batches, collate_fn=torch.tensor)]  # type: ignore[arg-type]
    batches.start = 0
    options = {"collate_fn": torch.tensor, "num_workers": 1, "prefetch_factor": 3}
    loader = ResumableLoader(range(10), batches, **options)  # type: ignore[arg-type]
    iterator = iter(loader)
    seen = [next(iterator).tolist() for _ in range(3)]
    state = loader.state_dict()
    assert state["consumed"] == 3
    rest_loader = ResumableLoader(range(10), SeededBatches(10, 3, 2, 1), collate_fn=torch.tensor)  # type: ignore[arg-type]
    rest_loader.load_state_dict(state)
    assert len(rest_loader) == 8
    assert seen + [batch.tolist() for batch in rest_loader] == everything


def test_another_seed_or_data_set_is_refused() -> None:
    state = ResumableLoader(range(10), SeededBatches(10, 3, 2, seed=1)).state_dict()  # type: ignore[arg-type]
    other = ResumableLoader(range(11), SeededBatches(11, 3, 2, seed=2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="samples was 10 and is 11, seed was 1 and is 2"):
        other.load_state_dict(state)


def test_an_earlier_checkpoint_is_continued_in_a_directory_of_its_own(tmp_path: Path) -> None:
    write_tiny_llava_json(tmp_path, n=10)
    kept = {"keep_checkpoints": 9}
    whole = train(tmp_path, tmp_path / "whole", **kept)
    earlier = tmp_path / "whole" / "checkpoints" / "step-00000006.ckpt"
    before = {path.name: path.read_bytes() for path in earlier.parent.iterdir()}
    with pytest.raises(UserError, match=r"Later checkpoints.*step 6\..*step-00000012\.ckpt.*run_dir=ANOTHER"):
        train(tmp_path, tmp_path / "whole", ckpt_path=str(earlier), **kept)
    assert {path.name: path.read_bytes() for path in earlier.parent.iterdir()} == before
    branch = train(tmp_path, tmp_path / "branch", ckpt_path=str(earlier), **kept)
    assert branch.checkpoint == tmp_path / "branch" / "checkpoints" / "step-00000012.ckpt"
    here, there = read_checkpoint(branch.checkpoint), read_checkpoint(whole.checkpoint)
    assert all(torch.equal(here.weights[name], value) for name, value in there.weights.items())
    with pytest.raises(UserError, match="is not among them"):
        train(tmp_path, tmp_path / "branch", ckpt_path=str(whole.checkpoint), **kept)


def test_the_result_is_what_the_run_wrote_and_not_what_lies_beside_it(tmp_path: Path) -> None:
    """Also where something puts a later file there meanwhile."""
    write_tiny_llava_json(tmp_path, n=10)
    stale = tmp_path / "run" / "checkpoints" / "step-00000099.ckpt"

    def disturb(*_: object) -> None:
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.touch()

    patch = pytest.MonkeyPatch()
    patch.setattr("tga.training.callbacks.MetricsFile.on_train_start", disturb)
    try:
        result = train(tmp_path, tmp_path / "run", max_steps=2, log_every=99)
    finally:
        patch.undo()
    assert result.checkpoint.name == "step-00000002.ckpt" and result.checkpoint.is_file()


def test_a_finished_run_that_is_continued_has_the_checkpoint_it_had(tmp_path: Path) -> None:
    write_tiny_llava_json(tmp_path, n=10)
    first = train(tmp_path, tmp_path / "run", max_steps=3)
    again = train(tmp_path, tmp_path / "run", max_steps=3, ckpt_path="last")
    assert again.checkpoint == first.checkpoint and again.samples == 0


def test_other_settings_are_refused_all_at_once(tmp_path: Path) -> None:
    write_tiny_llava_json(tmp_path, n=10)
    told = {"method": "tga", "alignment": {"layers": [0, 1, 3], "pair_weight": 1.0}}
    train(tmp_path, tmp_path / "run", max_steps=3, told=told)
    other = {"method": "regap", "alignment": {"layers": [0, 1]}}
    with pytest.raises(UserError) as refused:
        train(tmp_path, tmp_path / "run", max_steps=4, learning_rate=2e-3, told=other, ckpt_path="last")
    said = str(refused.value)
    for part in (
        "alignment.layers was [0, 1, 3] and is [0, 1]",
        "alignment.pair_weight was 1.0 and is not set",
        "method was tga and is regap",
        "training.learning_rate was 0.001 and is 0.002",
        "training.max_steps was 3 and is 4",
    ):
        assert part in said, said
    assert "seed" not in said and "config.yaml" in said
    (tmp_path / "train.json").write_text(json.dumps(json.loads((tmp_path / "train.json").read_text())[:9]))
    with pytest.raises(UserError, match="samples was 10 and is 9"):
        train(tmp_path, tmp_path / "run", max_steps=3, told=told, ckpt_path="last")


def test_what_decides_no_number_may_change(tmp_path: Path) -> None:
    write_tiny_llava_json(tmp_path, n=10)
    whole = train(tmp_path, tmp_path / "whole", max_steps=4)
    train(tmp_path, tmp_path / "half", max_steps=4, keep_checkpoints=9)
    (tmp_path / "half" / "checkpoints" / "step-00000004.ckpt").unlink()
    free = {"save_every": 1, "log_every": 2, "gradient_norm_every": 0, "gradient_checkpointing": True}
    result = train(tmp_path, tmp_path / "half", max_steps=4, ckpt_path="last", **free)
    here, there = read_checkpoint(result.checkpoint), read_checkpoint(whole.checkpoint)
    for name, value in there.weights.items():
        torch.testing.assert_close(here.weights[name], value)


def test_a_run_is_not_continued_beside_another_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_llava_json(tmp_path, n=10)
    train(tmp_path, tmp_path / "run", max_steps=4)

    def another_llava() -> tuple[Any, Any]:
        model, processor = tiny_llava()
        with torch.no_grad():
            model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.5)
        return model, processor

    monkeypatch.setattr("tests.training.killed.tiny_llava", another_llava)
    with pytest.raises(UserError, match="has been replaced"):
        train(tmp_path, tmp_path / "run", max_steps=4, ckpt_path="last")
