"""One process at a time at one place: others wait (`exclusive`) or are refused (`claimed`), and are told by whom.

The lock is held on a file `.<name>.lock` beside the place, which names the holder's process and goes with it: what a
killed process leaves is locked by nobody.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tga.errors import UserError
from tga.terminal import say


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time make what stands at `path`; others say for whom they wait."""
    with _held(Path(path), wait=True):
        yield


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep the run directory `path` for this process.

    Raises:
        UserError: another process holds it; the message names its process id.
    """
    with _held(Path(path), wait=False):
        yield


@contextmanager
def _held(path: Path, *, wait: bool) -> Iterator[None]:
    lock = path.parent / f".{path.name}.lock"
    descriptor = _acquire(lock, path, wait)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is released: nobody can have taken it in between
        os.close(descriptor)


def _acquire(lock: Path, path: Path, wait: bool) -> int:
    """An open, locked file that still stands at `lock`: the one waited for may have been removed by its holder."""
    while True:
        descriptor = _opened(lock, path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            if not wait:
                os.close(descriptor)
                raise UserError(
                    "Another process works in this directory",
                    given=f"{path}, process {holder}",
                    remedy=f"wait until it ends, or end it (kill {holder}), or run_dir=ANOTHER_DIRECTORY",
                ) from None
            say(f"Waiting for process {holder}, which works on {path}", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _stands_at(descriptor, lock):
            return descriptor
        os.close(descriptor)


def _opened(lock: Path, path: Path) -> int:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            "Nothing can be written at this place",
            given=f"{path}: {os.strerror(error.errno or 0)}",
            allowed="a directory that this user may write to, on a disk with room",
            remedy="name another directory",
        ) from error


def _stands_at(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except FileNotFoundError:
        return False
