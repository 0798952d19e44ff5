"""Processes that tga-train starts itself: they train as one does, say nothing, and nobody outlives anybody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tga.cli.own_processes import PARENT, own_processes, share_of_cores, with_own_processes
from tga.cli.train import main
from tga.cli.train_config import train_settings
from tga.errors import UserError
from tga.training.callbacks import read_metrics
from tga.training.checkpoint import latest_checkpoint, read_checkpoint
from tga.training.distributed import Processes, launched
from tga.training.settings import divided_batch

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model.llm=llm", "model.vision_tower=vision_tower", "data.json=train.json", "data.image_root=images",
    "alignment=baseline", "training.log_every=1", "training.accelerator=cpu", "export=null",
]  # fmt: skip
TWO = ["training=ddp", "training.processes=2", "training.batch_size=null", "training.global_batch_size=4"]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_tiny_parts(tmp_path)
    write_tiny_llava_json(tmp_path, n=16)
    return tmp_path


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tga.cli.train", *TINY, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=directory, env=variables, stdout=pipe, stderr=pipe, text=True)


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run_dir / "metrics.jsonl")]


def other_process(of: int) -> int:
    """The process that `of` has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it has ended meanwhile
            continue
        if int(text.rpartition(")")[2].split()[1]) == of:
            return int(stat.parent.name)
    raise AssertionError(f"{of} has started no process")


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not in {seconds} s"
        time.sleep(0.2)


def is_there(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_two_train_as_one_that_accumulates_two_batches(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = start(world, *TWO, "run_dir=two")
    alone = [*TWO, "training.processes=1", "training.accumulate_batches=2", "run_dir=one"]
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "argv", ["tga-train", *TINY, *alone])
    main()
    one = capsys.readouterr().out
    said, told = two.communicate()
    assert two.returncode == 0, told
    assert said.count("Output directory") == one.count("Output directory") == 1
    summary = json.loads((world / "two" / "summary.json").read_text())
    assert (summary["processes"], summary["steps"], summary["samples"]) == (2, 4, 16)
    assert summary["peak_rss_mib"] > 1.5 * 200  # of both: an import of torch alone takes more than 200
    assert losses(world / "two") == pytest.approx(losses(world / "one"), rel=1e-5)
    weights = [read_checkpoint(latest_checkpoint(world / name / "checkpoints")).weights for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)
    assert "tga-train" in told and "training.processes=2" in told and "torchrun" not in told  # how to go on
    assert PARENT not in os.environ and launched() == Processes()


def test_a_mistake_is_told_once_and_nothing_is_left(world: Path) -> None:
    ended = start(world, *TWO, "run_dir=two", "training.betas=[0.9,2]")
    said, told = ended.communicate(timeout=120)
    assert ended.returncode == 1 and said == ""
    assert told.count("Error: ") == 1 and "training.betas" in told and "Traceback" not in told
    assert not (world / "two").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["other", "first"])
def test_nobody_outlives_anybody(world: Path, victim: str) -> None:
    first = start(world, *TWO, "run_dir=two", "training.epochs=100000")
    wait_until(lambda: (world / "two" / "metrics.jsonl").is_file(), 120)
    other = other_process(first.pid)
    if victim == "other":
        os.kill(other, signal.SIGKILL)
        _, told = first.communicate(timeout=90)
        assert first.returncode == 1 and "process 1 of this training ended with code -9" in told
    else:
        first.kill()
        first.communicate()
        wait_until(lambda: not is_there(other))


def test_what_does_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for training, sweep, said in (
        ({"processes": 2, "strategy": "single", "accelerator": "cpu"}, False, "training=ddp"),
        ({"processes": 1, "strategy": "fsdp2", "accelerator": "cpu"}, False, "nobody to share"),
        ({"processes": 2, "strategy": "ddp", "accelerator": "cpu"}, True, "training.processes=1"),
        ({"processes": 2, "strategy": "ddp", "accelerator": "auto"}, False, "training.processes=2, 1 GPUs"),
    ):
        with pytest.raises(UserError, match=said), own_processes(training, sweep=sweep):
            raise AssertionError("the block must not run")


def test_what_the_one_that_failed_said_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This process is cut off from it and fails by that alone; a mistake of its own is told alone."""

    def start(rank: int, shared: object, log: str) -> subprocess.Popen[bytes]:
        with open(log, "wb") as said:
            return subprocess.Popen([sys.executable, "-c", "import sys; print('sample 17'); sys.exit(3)"], stdout=said)

    monkeypatch.setattr("tga.cli.own_processes._start", start)
    training = {"processes": 2, "strategy": "ddp", "accelerator": "cpu"}
    with pytest.raises(RuntimeError, match="closed"), own_processes(training):
        raise RuntimeError("connection closed")
    assert "process 1 of this training ended with code 3; it said:\nsample 17" in capsys.readouterr().err
    with pytest.raises(UserError, match="mine"), own_processes(training):
        raise UserError("mine")
    assert "sample 17" not in capsys.readouterr().err


def test_one_process_needs_no_strategy_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"processes": 1, "strategy": "ddp"}
    assert with_own_processes(values)["strategy"] == "single"
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):  # torchrun --nproc-per-node=1
        monkeypatch.setenv(name, "1")
    assert with_own_processes(values)["strategy"] == "ddp"


def test_each_process_has_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with share_of_cores(2, "cpu"):  # not started here: torchrun says how many threads each has
            assert torch.get_num_threads() == 4
        monkeypatch.setenv(PARENT, "1")
        with share_of_cores(2, "cpu"):
            assert torch.get_num_threads() == 2
        with share_of_cores(9, "cpu"):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, 8, 4, 2), (8, 4)),
        ((256, 16, None, 1), (16, 16)),
        ((256, 16, None, 8), (16, 2)),
        ((16, None, 1, 2), (8, 1)),
        ((16, None, None, 2), (8, 1)),
        ((32, None, 2, 2), (8, 2)),
        ((32, 8, 2, 2), (8, 2)),
    ],
)
def test_a_global_batch_is_divided(given: tuple[int, int, int, int], expected: tuple[int, int]) -> None:
    assert divided_batch(*given) == expected


@pytest.mark.parametrize(
    "given",
    [
        (256, 32, 1, 1),
        (256, 24, None, 1),
        (10, None, 1, 4),
        (2, None, 1, 4),
        (None, None, 1, 1),
        (None, 8, None, 1),
        (8, 0, None, 1),
        (8, None, 0, 1),
        (None, -1, 1, 1),
    ],
)
def test_a_global_batch_that_cannot_be_divided(given: tuple[int, int, int, int]) -> None:
    with pytest.raises(UserError, match="training.*batch_size"):
        divided_batch(*given)


def test_the_settings_are_those_of_the_processes_there_will_be() -> None:
    values = {"processes": 4, "strategy": "ddp", "global_batch_size": 64, "batch_size": 8, "accumulate_batches": None}
    assert train_settings(values).accumulate_batches == 2
    assert train_settings(values, 1).accumulate_batches == 8
