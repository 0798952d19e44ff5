"""One process at a time at one place: the one lock of everything that writes.

The lock is `flock` on a small hidden file, by the package filelock. Only that decides: it ends with the process that
holds it, however that ends. What the file says, who holds it since when, is for the message to others; a killed process
leaves the file behind, locked by nobody, and the next one takes it over. A run directory has the file within it, so
that its parent need not be writable; a file, or a directory that is replaced as a whole, has it beside.

On file systems without `flock` a lock is an error, not a marker file, which would outlive a killed process.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from retrieval_index.errors import RetrievalError

LOCK = ".lock"
MOST_CHARACTERS = 200  # of a command line in a message
POLL_S = 0.2
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as he says himself: process id, host, local time, command line."""

    process: int
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since} ({self.command})"


class Held(RetrievalError):
    """Another process holds the lock; `holder` is None where the lock's file does not say who."""

    def __init__(self, path: Path, holder: Holder | None) -> None:
        end = f", or end it (kill {holder.process} on {holder.host})" if holder is not None else ""
        super().__init__(
            "Another process works here", given=f"{path}, {holder or UNKNOWN}", remedy=f"wait until it ends{end}"
        )
        self.path, self.holder = path, holder


UNKNOWN = "process unknown"


def lock_within(directory: Path) -> Path:
    """The lock's file of a directory that fills over time."""
    return directory.resolve() / LOCK


def lock_beside(path: Path) -> Path:
    """The lock's file of a file, or of a directory that is replaced as a whole."""
    real = path.resolve()
    return real.with_name(f".{real.name}.lock")


@contextmanager
def locked(lock: Path, path: Path, *, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock while the block runs; its file is gone afterwards.

    Not re-entrant: the outer command locks what its parts write.

    Args:
        lock: the lock's file, by :func:`lock_within` or :func:`lock_beside`; missing directories are made.
        path: what is locked, for messages.
        on_wait: is told once by whom it is held, before this process waits; None: it does not wait.

    Raises:
        Held: another process holds it, and `on_wait` is None.
        RetrievalError: the file cannot be written, or the file system has no locks.
    """
    made = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    try:
        file = _acquired(lock, path, on_wait)
    except BaseException:
        _remove_empty(made)
        raise
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is released; who waits for the removed file looks for the next one
        file.release()
        _remove_empty(made)


def _acquired(lock: Path, path: Path, on_wait: Callable[[str], None] | None) -> FileLock:
    # 0666: a killed process of another user must not keep out those who may write here.
    foreign = _is_foreign(lock)
    how: dict[str, Any] = {"preserve_lock_file": True} if foreign else {"on_acquired": _sign}
    file = FileLock(lock, mode=0o666, thread_local=False, fallback_to_soft=False, **how)
    told = False
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)  # whoever held it before may have removed it, empty
            file.acquire(blocking=told, poll_interval=POLL_S)
            if not foreign:
                return file
            file.release()
            raise RetrievalError(
                "A file of somebody else stands where the lock of this place would be",
                given=f"{path}: {lock}",
                remedy="move that file, or name another directory",
            )
        except Timeout as error:
            holder = read_holder(lock)
            if on_wait is None:
                raise Held(path, holder) from error
            on_wait(str(holder or UNKNOWN))
            told = True
        except FileNotFoundError:
            continue
        except (OSError, NotImplementedError) as error:
            raise _cannot_lock(path, error) from error


def _is_foreign(lock: Path) -> bool:
    """Whether a file stands at the place of the lock that no lock has written."""
    try:
        status = lock.lstat()
        if not stat.S_ISREG(status.st_mode):
            return False  # the lock itself refuses these
        of_before = lock.read_bytes()[:32].strip().isdigit()  # earlier versions wrote their process id alone
    except OSError:
        return False  # nothing there, or nothing that can be read: acquiring it says what is wrong
    return status.st_nlink > 1 or (status.st_size > 0 and not of_before and read_holder(lock) is None)


def _cannot_lock(path: Path, error: OSError | NotImplementedError) -> RetrievalError:
    number = error.errno if isinstance(error, OSError) else errno.ENOSYS
    if number in NO_LOCKS:
        return RetrievalError(
            "This file system has no locks, so two processes could write here at once",
            given=f"{path}: {error}",
            allowed="a local disk, or a network file system that is mounted with locks",
            remedy="name a directory on another disk, or mount this one with locks (NFS: not with nolock)",
        )
    return RetrievalError(
        "Nothing can be written at this place",
        given=f"{path}: {os.strerror(number or 0)}",
        allowed="a directory that this user may write to, on a disk with room",
        remedy="name another directory",
    )


def read_holder(lock: Path) -> Holder | None:
    """What the file of a lock says; None where that cannot be read, as in the instant in which it is taken."""
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
        return Holder(int(content["process"]), *(_printable(content[key]) for key in ("host", "since", "command")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sign(descriptor: int) -> None:
    """Write into the file of a lock who holds it from now on."""
    command = _printable(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:MOST_CHARACTERS]
    me = Holder(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S %z"), command)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)


def _printable(text: object) -> str:
    """Text that moves no cursor."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def _remove_empty(directories: list[Path]) -> None:
    with suppress(OSError):  # not empty, or removed by another
        for directory in directories:
            directory.rmdir()
