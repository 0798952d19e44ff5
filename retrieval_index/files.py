"""Files that are either complete or absent, their hashes, and the one message of a full disk.

Everything is written under a temporary name beside its place, flushed and renamed: a name that exists is complete, and
a killed command leaves the previous file or none, never half of one. What may be replaced or removed at all is said in
`retrieval_index.ownership`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval_index.errors import RetrievalError

FULL = (errno.ENOSPC, errno.EDQUOT)
# .NAME.PROCESS.RANDOM.tmp[.SUFFIX]; RANDOM was not always part of it.
TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+(?:\.[a-z0-9_]{8})?\.tmp(?:\.[^.]*)?")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there replaces `path` when the block ends well.

    Missing parent directories are made. The temporary name has the suffix of `path`, and the file in the end the mode
    of the umask. On an exception it is removed and `path` stays as it was.

    Raises:
        RetrievalError: the disk is full; what stood at `path` is still there.
    """
    target = Path(path)
    with full_disk_told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=temporary_prefix(target), suffix=f".tmp{target.suffix}"
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            synchronise(temporary)
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, target)
            synchronise(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def give_modes(directory: Path) -> None:
    """Give all files below a directory, and it, the modes of the umask; execute bits stay, links are not followed.

    Libraries choose modes of their own: a file of safetensors is for its owner alone.
    """
    umask = _umask()
    directory.chmod(0o777 & ~umask)
    for folder, folders, names in os.walk(directory):
        for name in [*folders, *names]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                path.chmod(0o777 & ~umask)
            elif stat.S_ISREG(mode):
                path.chmod((0o666 | mode & 0o111) & ~umask)


def remove_unfinished(directory: Path) -> None:
    """Remove the temporary files that a killed process left below `directory`.

    Only regular files whose whole name is one that `atomic_path` gives. The caller holds the lock of the directory, so
    that no other process is writing them.
    """
    for folder, _, names in os.walk(directory):
        for name in names:
            if TEMPORARY.fullmatch(name) and stat.S_ISREG(os.lstat(path := os.path.join(folder, name)).st_mode):
                os.unlink(path)


def temporary_prefix(path: Path) -> str:
    """How the name of a temporary file or directory beside `path` begins; see :data:`TEMPORARY`."""
    return f".{path.name}.{os.getpid()}."


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Raise :func:`disk_full` for a write to `path` that found no space in the block."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path) from error
        raise


def disk_full(path: Path) -> RetrievalError:
    """The error of a write that found no space."""
    return RetrievalError(
        "The disk is full",
        given=path,
        remedy="free some space and run the same command again: what is finished is kept",
    )


def exchange(one: Path, other: Path) -> bool:
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


def write_json(path: str | os.PathLike[str], content: Any, *, sort_keys: bool = False) -> None:
    """Write indented UTF-8 JSON, atomically; NaN and infinities are refused with a ValueError.

    sort_keys: the same content gives the same bytes, in whatever order it was put together.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
    with atomic_path(path) as temporary:
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


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
