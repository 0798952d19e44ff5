"""One process at a time: a second one waits or is refused, is told by whom, and nothing stays behind."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.locks import LOCK, lock_within, locked, read_holder
from tga.cli.locks import claimed, claimed_output, exclusive, exclusive_within
from tga.errors import UserError

HOST, SINCE = socket.gethostname(), r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}"
ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from tga.cli import locks
with getattr(locks, sys.argv[3])(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[1] + ".done").touch()
"""


@contextmanager
def holder(path: Path, seconds: float, kind: str = "exclusive") -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds `path` and writes `path.done` before it lets go."""
    command = [sys.executable, "-c", HOLD, str(path), str(seconds), kind]
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
        said = capsys.readouterr().err
    pattern = rf"Waiting for process {other.pid} on {re.escape(HOST)} since {SINCE} \(-c .*\), which works on {made}\n"
    assert re.fullmatch(pattern, said), said
    assert [path.name for path in tmp_path.iterdir()] == ["made.done"]


def test_a_second_process_is_refused_at_once_and_told_by_whom(tmp_path: Path) -> None:
    with holder(tmp_path / "run", 60, "claimed") as other:
        started = time.monotonic()
        told = rf"works in this directory.*run, process {other.pid} on {re.escape(HOST)} since {SINCE}.*run_dir=ANOTHER"
        with pytest.raises(UserError, match=told), claimed(tmp_path / "run"):
            raise AssertionError("both are in")
        assert time.monotonic() - started < 30


def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    with holder(tmp_path / "run", 60, "claimed") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (left := read_holder(lock_within(tmp_path / "run"))) is not None and left.process == other.pid
        with claimed(tmp_path / "run"):
            assert (now := read_holder(lock_within(tmp_path / "run"))) is not None and now.process == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_that_names_a_running_process_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"process": os.getppid(), "host": HOST, "since": "now", "command": "x"}))
    with claimed(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"process": "many"}', "\x1b]0;owned\x07"])
def test_a_holder_that_does_not_say_who_he_is_still_holds(tmp_path: Path, content: str) -> None:
    with holder(tmp_path / "run", 60, "claimed"):
        lock_within(tmp_path / "run").write_text(content)
        with pytest.raises(UserError, match="run, process unknown. To change it: wait until it ends, or run_dir="):
            with claimed(tmp_path / "run"):
                pytest.fail("both are in")


def test_what_a_holder_says_moves_no_cursor(tmp_path: Path) -> None:
    with holder(tmp_path / "run", 60, "claimed"):
        said = {"process": 7, "host": "a\x1b[2Jb", "since": "now", "command": "x\ny"}
        lock_within(tmp_path / "run").write_text(json.dumps(said))
        with pytest.raises(UserError, match=r"process 7 on a\?\[2Jb since now \(x\?y\)"), claimed(tmp_path / "run"):
            pytest.fail("both are in")


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_the_parent_of_a_run_directory_need_not_be_writable(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    tmp_path.chmod(0o555)
    try:
        with claimed(tmp_path / "run"):
            assert read_holder(lock_within(tmp_path / "run")).process == os.getpid()
    finally:
        tmp_path.chmod(0o755)


def test_everything_of_a_claim_is_within_the_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with claimed(tmp_path / "run"):
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert list((tmp_path / "run").iterdir()) == []


def test_directories_that_were_made_for_a_claim_and_stayed_empty_are_gone(tmp_path: Path) -> None:
    with claimed(tmp_path / "outputs" / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "outputs" / "run"):
        (tmp_path / "outputs" / "run" / "config.yaml").touch()
    assert [path.name for path in (tmp_path / "outputs" / "run").iterdir()] == ["config.yaml"]


def test_a_file_system_without_locks_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(UserError, match="This file system has no locks.*NFS"), claimed(tmp_path / "run"):
        pytest.fail("held without a lock")


def test_the_place_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "run"):
        1 / 0  # noqa: B018
    with claimed(tmp_path / "run"):
        pass


@pytest.mark.parametrize("take", [exclusive, exclusive_within, claimed, partial(claimed_output, option="out")])
def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path, take: Callable[[Path], Any]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="Nothing can be written at this place. Given: .*below: (Not a directory|File exists)"
    ):
        with take(tmp_path / "file" / "below"):
            pytest.fail("held")


def test_a_file_of_somebody_else_at_the_place_of_the_lock_stays(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / ".lock").write_text("precious")
    with (
        pytest.raises(RetrievalError, match="somebody else.*move that file"),
        locked(lock_within(directory), directory),
    ):
        pass
    assert (directory / ".lock").read_text() == "precious"
    (directory / ".lock").write_text("")  # what a killed holder left before it signed
    with locked(lock_within(directory), directory):
        pass
    assert not (directory / ".lock").exists()
