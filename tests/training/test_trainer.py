"""Loggers beside metrics.jsonl: the same rows, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_run import run
from tga.errors import UserError
from tga.training import trainer


def test_tensorboard_gets_the_rows_of_the_metrics_file(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result, rows = run(tmp_path, max_steps=3, loggers=["tensorboard"])
    events = event_accumulator.EventAccumulator(str(result.checkpoint.parents[1] / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {"loss", "loss_lm", "learning_rate", "samples_per_s"}
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows]


def test_loggers_that_are_not_there_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="tensorboard, wandb"):
        run(tmp_path, max_steps=1, loggers=["paper"])

    monkeypatch.setattr(trainer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        run(tmp_path, max_steps=1, seed=2, loggers=["wandb"])


def test_what_a_run_used_is_in_its_result(tmp_path: Path) -> None:
    result, _ = run(tmp_path, epochs=2)
    assert result.tokens_per_s > result.samples_per_s > 0 and result.peak_device_mib is None
    assert 0 < result.data_wait_share < 1 and 0 < result.model_flop_utilisation < 1
