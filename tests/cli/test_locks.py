"""One process at a time: a second one waits or is refused, is told by whom, and nothing stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tga.cli.locks import claimed, exclusive
from tga.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from tga.cli.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[1] + ".done").touch()
"""


@contextmanager
def holder(path: Path, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds `path` and writes `path.done` before it lets go."""
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_waits_and_says_for_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    with holder(made, 0.5) as other:
        with exclusive(made):
            assert (tmp_path / "made.done").exists()
            assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".made.lock"]
        assert capsys.readouterr().err == f"Waiting for process {other.pid}, which works on {made}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["made.done"]


def test_a_second_process_is_refused_at_once_and_told_by_whom(tmp_path: Path) -> None:
    with holder(tmp_path / "run", 60) as other:
        started = time.monotonic()
        with (
            pytest.raises(UserError, match=rf"works in this directory.*run, process {other.pid}\..*run_dir=ANOTHER"),
            claimed(tmp_path / "run"),
        ):
            raise AssertionError("both are in")
        assert time.monotonic() - started < 30


def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    with holder(tmp_path / "run", 60) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / ".run.lock").exists()
        with claimed(tmp_path / "run"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_the_place_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "run"):
        1 / 0  # noqa: B018
    with claimed(tmp_path / "run"):
        pass


@pytest.mark.parametrize("take", [exclusive, claimed])
def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path, take: Callable[[Path], Any]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="Nothing can be written at this place. Given: .*below: (Not a directory|File exists)"
    ):
        with take(tmp_path / "file" / "below"):
            pytest.fail("held")
