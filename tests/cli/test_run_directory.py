"""Two commands in one directory, killed ones, and directories in which files of somebody else's stand."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_llava, tiny_picture, write_tiny_llava_json, write_tiny_parts
from tga.cli import compare, evaluate, export, locate, steer, train, verify_data
from tga.cli.run_directory import export_directory
from tga.export.hf import KIND
from tga.files import atomic_directory
from tga.training.callbacks import read_metrics

ROOT = Path(__file__).resolve().parents[2]
HOLDER = rf"process \d+ on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{{4}} \(.+\)"
TRAIN = [
    "model.llm=llm", "model.vision_tower=vision_tower", "data.json=train.json", "data.image_root=images",
    "alignment=baseline", "training.batch_size=2", "training.log_every=1", "training.accelerator=cpu", "export=null",
]  # fmt: skip
METRIC = ["evaluation.root=.", "+evaluation.metrics.image_dsr={file: toxic.jsonl}", "evaluation.max_new_tokens=2"]
EVALUATE = ["models={one: vlm}", *METRIC]
COMMANDS: dict[str, tuple[Any, list[str]]] = {
    "train": (train, [*TRAIN, "run_dir=out"]),
    "evaluate": (evaluate, [*EVALUATE, "run_dir=out"]),
    "steer": (steer, ["vlm=vlm", "steering.anchors=toxic.jsonl", *METRIC, "run_dir=out"]),
    "locate": (locate, ["vlm=vlm", "evaluation.root=.", "localization.figures=[]", "run_dir=out"]),
    "compare": (compare, [*TRAIN[:4], "methods=[baseline]", "seeds=[0]", "run_dir=out"]),
    "export": (export, ["model.vlm=vlm", "run_dir=out"]),
    "export of the same output": (export, ["model.vlm=vlm", "run_dir=other", "output=out"]),
    "verify_data": (verify_data, ["data.json=train.json", "data.image_root=images", "workers=0", "out=out"]),
}
RUNS = ("train", "evaluate", "steer", "locate", "compare", "export")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_parts(tmp_path)
    write_tiny_llava_json(tmp_path, n=16)
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    tiny_picture(0).save(tmp_path / "0.png")
    (tmp_path / "toxic.jsonl").write_text(json.dumps({"id": 0, "image": "0.png", "prompt": "What?"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, command: Any, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tga", *arguments])
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def content(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@contextmanager
def held(path: Path, kind: str) -> Iterator[int]:
    """The id of another process that keeps `path`, until it is killed at the end."""
    program = (
        "import pathlib, sys, time; from tga.cli import locks\n"
        f"with locks.{kind}: print('in', flush=True); time.sleep(120)"
    )
    command = [sys.executable, "-c", program.replace("PATH", f"pathlib.Path({str(path)!r})")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_command_is_refused_and_told_by_whom(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, arguments = COMMANDS[name]
    kind = "claimed(PATH)" if name in RUNS else "claimed_output(PATH, option='out')"
    with held(world / "out", kind) as process:
        before = set(content(world))
        assert call(monkeypatch, command, *arguments) == 1
        told = capsys.readouterr().err
        assert re.search(HOLDER, told) and f"process {process} " in told and "ANOTHER_" in told, told
        assert told.count("Error: ") == 1 and set(content(world)) == before
    if name in ("evaluate", "verify_data"):  # which are done soon
        assert call(monkeypatch, command, *arguments) == 0, "what a killed process held is free"


@pytest.mark.parametrize("name", RUNS)
def test_files_of_others_at_a_runs_names_stay(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "out").mkdir()
    for file in ("config.yaml", "summary.json", "answers.jsonl", "report.html"):
        (world / "out" / file).write_text("name: mine\ndefaults: [a]\nrun_dir: x\n")
    before = content(world / "out")
    command, arguments = COMMANDS[name]
    assert call(monkeypatch, command, *arguments) == 1
    told = capsys.readouterr().err
    assert "would replace files that no run of tga wrote. Given: " in told and "run_dir=ANOTHER_DIRECTORY" in told
    assert content(world / "out") == before


def test_two_trainings_do_not_mix_and_a_killed_one_goes_on(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*TRAIN, "run_dir=out", "training.max_steps=30", "training.epochs=10", "training.save_every=5"]
    command = [sys.executable, "-m", "tga.cli.train", *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as first:
        try:
            deadline = time.monotonic() + 120
            while not list(world.glob("out/checkpoints/step-*.ckpt")):
                assert first.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            first.send_signal(signal.SIGSTOP)  # it holds its directory and does nothing
            before = content(world / "out")
            assert call(monkeypatch, train, *settings) == 1
            told = capsys.readouterr().err
            assert re.search(HOLDER, told) and f"process {first.pid} " in told and "train.py model.llm=llm" in told, (
                told
            )
            assert content(world / "out") == before
        finally:
            first.send_signal(signal.SIGKILL)
    half = world / "out" / "checkpoints" / ".step-00009999.ckpt.17.abcd1234.tmp.ckpt"
    half.write_bytes(b"half a checkpoint")
    mine = world / "out" / "checkpoints" / "step-00000005-mine.ckpt"
    mine.write_bytes(b"a copy")
    assert call(monkeypatch, train, *settings, "ckpt_path=last") == 0, capsys.readouterr().err
    assert [row["step"] for row in read_metrics(world / "out" / "metrics.jsonl")] == list(range(1, 31))
    assert mine.read_bytes() == b"a copy" and not half.exists()
    assert not list((world / "out").glob(".*"))


def test_what_a_killed_export_left_goes_and_what_somebody_added_to_it_stays(tmp_path: Path) -> None:
    half, retired = tmp_path / ".hf.7.abcdefgh.tmp", tmp_path / ".hf.8.abcdefgh.tmp"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    with atomic_directory(retired, KIND) as directory:
        (directory / "config.json").write_text("{}")
    (retired / "notes.txt").write_text("mine")
    with export_directory(tmp_path / "hf", option="output"):
        assert not half.exists()
    assert [path.name for path in retired.iterdir()] == ["notes.txt"]
