"""The process that draws the training pictures ends with whoever wants them, and its failure is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tga.errors import UserError
from tga.mini.training_set import training_set_meanwhile, write_training_set

MORE_THAN_TIME_FOR = 10_000_000


def stops_growing(folder: Path) -> bool:
    """Whether the folder's number of files stays the same for a second, sooner or later: a picture may be under way."""
    for _ in range(20):
        before = len(list(folder.iterdir()))
        time.sleep(1)
        if len(list(folder.iterdir())) == before:
            return True
    return False


def wait_for_a_picture(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not (folder.is_dir() and any(folder.iterdir())):
        assert time.monotonic() < deadline, "nothing was drawn in a minute"
        time.sleep(0.05)


def test_the_same_files_as_in_this_process(tmp_path: Path) -> None:
    write_training_set(tmp_path / "here", 12)
    with training_set_meanwhile(tmp_path / "there", 12):
        (tmp_path / "meanwhile").touch()
    names = ["train.json", *(f"images/{number:05d}.png" for number in range(12))]
    assert all((tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes() for name in names)
    assert len(json.loads((tmp_path / "there" / "train.json").read_text())) == 12


def test_files_of_the_current_directory_are_not_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with training_set_meanwhile(tmp_path / "world", 1):
        pass
    assert (tmp_path / "world" / "train.json").is_file()


def test_its_failure_is_an_error_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"could not be drawn.*exit code 1 of: .*training_set"):
        with training_set_meanwhile(tmp_path, 1):
            pass
    assert "FileExistsError" in capfd.readouterr().err


def test_an_error_here_stops_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with training_set_meanwhile(tmp_path, MORE_THAN_TIME_FOR):
            wait_for_a_picture(tmp_path / "images")
            raise ZeroDivisionError
    assert stops_growing(tmp_path / "images")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_it_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import pathlib, time; from tga.mini.training_set import training_set_meanwhile as meanwhile\n"
        f"with meanwhile(pathlib.Path({str(tmp_path)!r}), {MORE_THAN_TIME_FOR}): time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as parent:
        wait_for_a_picture(tmp_path / "images")
        os.kill(parent.pid, signal.SIGKILL)
    assert stops_growing(tmp_path / "images")
