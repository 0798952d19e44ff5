"""The one rule for everything that replaces or removes: only what we wrote ourselves, file by file.

Who wrote a file is never guessed from the look of a directory. Either a list says it, which was written together with
the files and holds a hash of each (:func:`listed`), or the directory bears our mark and the whole name is one that we
give there. What is no such file (somebody's notes, a file that was changed since, a symbolic link, a pipe) stays; links
are neither followed nor removed, so nothing outside of the directory is ever touched. A folder goes when it became
empty by what was removed.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval_index.errors import RetrievalError
from retrieval_index.files import (
    exchange,
    file_sha256,
    full_disk_told,
    give_modes,
    synchronise,
    temporary_prefix,
    write_json,
)

MARK = ".written_files.json"  # in a directory that is written as a whole: what it is, and the files with their hashes
Ours = Callable[[str], bool]  # takes a path within a directory, with slashes


def write_mark(directory: Path, kind: str) -> None:
    """Leave :data:`MARK` in a directory that has just been written: of which kind it is, and all files in it."""
    files = {name: file_sha256(directory / name) for name in entries(directory) if _is_file(directory / name)}
    files.pop(MARK, None)
    write_json(directory / MARK, {"kind": kind, "files": files}, sort_keys=True)


def marked_files(directory: Path, kind: str) -> dict[str, str] | None:
    """The files and hashes of a directory with a mark of this kind; None for any other directory."""
    content = read_object(directory / MARK)
    files = content.get("files") if content.get("kind") == kind else None
    return files if isinstance(files, dict) else None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no such file, or something else in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def listed(root: Path, files: Mapping[str, str]) -> Ours:
    """Ours are the files of a list (path within `root` -> SHA-256) whose content is still the same, and the mark."""
    return lambda name: name == MARK or (name in files and file_sha256(root / name) == files[name])


def entries(root: Path) -> Iterator[str]:
    """Paths within `root`, with slashes, of everything in it that is no folder; links are not followed."""
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*names, *links]):
            yield Path(folder, name).relative_to(root).as_posix()


def not_ours(root: Path, ours: Ours) -> list[str]:
    """What in a directory we did not write: paths within it."""
    return [name for name in entries(root) if not (_is_file(root / name) and ours(name))]


def remove_ours(root: Path, ours: Ours) -> list[str]:
    """Remove the files below `root` that are ours, and folders (`root` too) that this leaves empty.

    Those in folders go first, those in `root` last and in the order of their names.

    Args:
        root: a directory, or nothing; no link.
        ours: of a path within it.

    Returns:
        what stays, as paths within `root`.
    """
    if not root.is_dir():
        return []
    left: list[str] = []
    emptied: set[str] = set()
    for folder, folders, names, descriptor in os.fwalk(root, topdown=False, follow_symlinks=False):
        within = Path(folder).relative_to(root)
        removed = False
        for name in sorted(names):
            path = (within / name).as_posix()
            regular = stat.S_ISREG(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)
            if regular and ours(path):
                os.unlink(name, dir_fd=descriptor)
                removed = True
            else:
                left.append(path)
        for name in folders:
            path = (within / name).as_posix()
            if path in emptied:
                os.rmdir(name, dir_fd=descriptor)
                removed = True
            elif stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                left.append(path)
        if removed and not os.listdir(descriptor):
            emptied.add(within.as_posix())
    if "." in emptied:
        os.rmdir(root)
    return sorted(left)


def replace_directory(made: Path, target: Path, ours_in: Callable[[Path], Ours]) -> None:
    """Give the finished directory `made` the name `target`; of what stood there, what is ours is removed.

    The two swap names in one step where the file system can (Linux, `renameat2`): a reader finds the one or the other
    at any moment. Elsewhere there is an instant at which `target` has no directory. What is not ours moves over to the
    new directory, to the same place in it.

    Args:
        made: beside `target`.
        target: no link.
        ours_in: is asked about the directory that stands at `target` now, by the name that it has got by then.

    Raises:
        RetrievalError: the new directory has a file of its own at the place of one that is not ours; both are kept, and
            the error names where.
    """
    if not os.path.lexists(target):
        os.rename(made, target)
        synchronise(target.parent)
        return
    retired = made
    if not exchange(made, target):
        retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=temporary_prefix(target), suffix=".tmp"))
        os.rename(target, retired)
        os.rename(made, target)
    synchronise(target.parent)
    for name in remove_ours(retired, ours_in(retired)):
        _move_over(retired / name, target / name)
    for folder, _, _ in os.walk(retired, topdown=False):
        os.rmdir(folder)


def _move_over(path: Path, place: Path) -> None:
    if os.path.lexists(place):
        raise RetrievalError(
            "A file was replaced that we had not written; it is kept",
            given=f"{path}, which stood at {place}",
            remedy="move it to where it belongs",
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, place)


def reason_to_keep(path: Path, kind: str) -> str | None:
    """Why the directory at `path` may not be replaced by one of this kind; None where it may.

    It may where there is nothing, an empty directory, or one that is marked as of this kind and holds what was written
    into it and nothing else.
    """
    target = path.resolve()
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return None
    if not target.is_dir():
        return "it is a file"
    files = marked_files(target, kind)
    if files is None:
        return f"it has no mark ({MARK}) of an earlier one"
    others = not_ours(target, listed(target, files))
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return f"these files in it are others, or were changed since: {', '.join(others[:3])}{more}" if others else None


@contextmanager
def atomic_directory(path: Path, kind: str) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; it takes the name `path` when the block ends well, marked as `kind`.

    All files and folders in it then have the modes of the umask, whatever modes the libraries that wrote them chose.

    Args:
        path: a link is followed. What stands there is replaced; the caller has asked :func:`reason_to_keep` before.

    Raises:
        RetrievalError: the disk is full.
    """
    target = path.resolve()
    with full_disk_told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=temporary_prefix(target), suffix=".tmp"))
        try:
            yield temporary
            write_mark(temporary, kind)
            give_modes(temporary)
            for name in entries(temporary):
                if _is_file(temporary / name):
                    synchronise(temporary / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # made here, under a name that nobody else has
            raise
        files = marked_files(target, kind) or {}
        replace_directory(temporary, target, lambda root: listed(root, files))


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)
