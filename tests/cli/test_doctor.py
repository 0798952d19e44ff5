"""tga-doctor as a user calls it: a report on stdout, exit code 1 where there is a problem."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tga.cli import doctor, half_precision
from tga.cli.checks import Finding


def call(monkeypatch: pytest.MonkeyPatch, directory: Path, *arguments: str) -> int:
    """Run tga-doctor in this process, in `directory`; its exit code."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["tga-doctor", *arguments])
    try:
        doctor.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(autouse=True)
def _healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment has a test of its own; here it is always well."""
    monkeypatch.setattr(doctor, "environment", lambda: iter([Finding("python", "3.11")]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_tiny_parts(root)
    write_tiny_llava_json(root)
    return root


def test_without_arguments_it_looks_at_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path) == 0
    shown = capsys.readouterr().out
    assert "Environment" in shown and "3.11" in shown and "No problems found." in shown and "Run\n" not in shown
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_whose_files_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here without hub and data: both are named, and nothing is written."""
    assert call(monkeypatch, tmp_path, "+experiment=llava7b") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "lmsys/vicuna-7b-v1.5" in shown and "blip_laion_cc_sbu_558k.json" in shown
    assert "Problem 1:" in shown and "Problem 2:" in shown and "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_that_can_start(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "+experiment=llava7b", "model.llm=llm", "model.vision_tower=vision_tower", "data.json=train.json",
        "data.image_root=images", "alignment.layers=[1,2]", "training.accelerator=cpu",
    ]  # fmt: skip
    assert call(monkeypatch, world, *arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "llava, 3 decoder layers of width 32" in shown and "8, 8 with a picture" in shown
    assert "16 prompts of" in shown and "No problems found." in shown


def test_a_data_set_alone(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, world, "data.json=train.json", "data.image_root=images") == 0
    assert "8, 8 with a picture" in capsys.readouterr().out
    assert call(monkeypatch, world, "data.json=train.json", "data.image_root=elsewhere") == 1
    assert "8 pictures are missing" in " ".join(capsys.readouterr().out.split())


def test_values_that_are_missing_are_all_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path, "model.llm=llm") == 1
    shown = capsys.readouterr().out
    assert all(key in shown for key in ("data.json", "data.image_root", "model.vision_tower"))


def test_what_a_run_writes_first_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path, "+experiment=mini", f"prepare.root={tmp_path}/world") == 0
    assert "writes its model and data" in " ".join(capsys.readouterr().out.split())


def test_wrong_settings_are_named_before_the_run_has_written_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = f"prepare.root={tmp_path}/world"
    assert call(monkeypatch, tmp_path, "+experiment=mini", world, "export=onnx", "training.learning_rate=-1") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "Problem 2:" in shown and "onnx" in shown and "learning_rate=-1" in shown


@pytest.mark.parametrize("times", [40, 1])
def test_a_cpu_that_is_slow_at_bfloat16_is_warned_of(
    times: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the run has not yet written what it reads; it stays a warning."""
    seconds = {torch.bfloat16: times * 0.001, torch.float32: 0.001}
    monkeypatch.setattr(half_precision, "product_s", seconds.__getitem__)
    half = ["training.precision=bf16-mixed", "training.accelerator=cpu"]
    paths = ["model.llm=llm", "model.vision_tower=vision_tower", "data.json=train.json", "data.image_root=images"]
    for arguments in (["+experiment=mini", f"prepare.root={tmp_path}/world"], [*paths, "alignment=baseline"]):
        assert call(monkeypatch, world, *arguments, *half) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{times} ms for a matrix product that takes 1 ms in float32" in shown and "No problems found." in shown
        warned = "Warning: bfloat16 takes about 40 times as long as float32" in shown
        assert warned == ("training.precision=32-true is faster here" in shown) == (times == 40)
    assert call(monkeypatch, world, *paths, "alignment=baseline", "training.accelerator=cpu") == 0
    assert "bfloat16 on this CPU" not in capsys.readouterr().out
