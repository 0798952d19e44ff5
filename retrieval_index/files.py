"""Files that are either complete or absent, their hashes, and the one message of a full disk.

Everything is written under a temporary name beside its place, flushed and renamed: a name that exists is complete.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval_index.errors import RetrievalError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling that takes the name `path` when the block ends well, else it is removed.

    Raises:
        RetrievalError: the disk is full; what stood at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        synchronise(temporary)
        os.replace(temporary, path)
        synchronise(path.parent)
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def disk_full(path: Path) -> RetrievalError:
    """The error of a write that found no space."""
    return RetrievalError(
        "The disk is full",
        given=path,
        remedy="free some space and run the same command again: what is finished is kept",
    )


def move_into_place(made: Path, path: Path) -> None:
    """Give the finished directory `made` the name `path`; what stood there is removed.

    The two swap names in one step where the file system can (Linux, `renameat2`): a reader finds the one or the other
    at any moment. Elsewhere there is an instant at which `path` has no directory. What is being removed has a name of
    its own, `<path>.old`, so that a half-removed directory is never taken for finished work.

    Args:
        made: the finished directory, beside `path`.
        path: no link.
    """
    retired = path.with_name(path.name + ".old")
    if retired.exists():  # a process was killed while it removed it
        shutil.rmtree(retired)
    if not path.exists():
        os.rename(made, path)
    else:
        if _swap(made, path):
            os.rename(made, retired)
        else:
            os.rename(path, retired)
            os.rename(made, path)
        shutil.rmtree(retired)
    synchronise(path.parent)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names; False where the C library or the file system has no such call."""
    at_working_directory, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if not call(at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def synchronise(path: Path) -> None:
    """Wait until a file's (or directory's) content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(directory: Path) -> None:
    """Remove the temporary files that a killed process left below `directory`."""
    for unfinished in directory.rglob(".*.tmp"):
        unfinished.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write indented UTF-8 JSON; the same content gives the same bytes."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=True)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(paths: Sequence[str | Path]) -> str:
    """SHA-256 over sizes and bytes of the files, in their order; their names and places do not count."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{Path(path).stat().st_size}:".encode())
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold `path` for this process by a lock file beside it; the claim ends with the process, however it ends.

    Raises:
        RetrievalError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with open(lock, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RetrievalError(
                    "Another process is building this index",
                    given=path,
                    remedy="wait until it has ended, or out=DIR of another directory",
                ) from error
            # Whoever held it before may have removed the file that this process had opened.
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
