"""One process at a time at one place, for the commands: others are refused, or wait, and are told by whom.

The lock itself is that of `retrieval_index.locks`. A command claims the directory of its run, so that no second one
mixes its files with those of the first; what several commands share (a prepared directory, an index, stored targets) is
made by one of them while the others wait.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from retrieval_index.errors import RetrievalError
from retrieval_index.locks import Held, lock_beside, lock_within, locked
from tga.errors import UserError
from tga.terminal import say


@contextmanager
def claimed(directory: Path, *, option: str = "run_dir") -> Iterator[None]:
    """Keep the directory of a run, which is made, for this process.

    option: the command's key for it.

    Raises:
        UserError: another process holds it; the message names its process id, its host, and since when.
    """
    with _held(lock_within(directory), directory, another=f"{option}=ANOTHER_DIRECTORY"):
        yield


@contextmanager
def claimed_output(path: Path, *, option: str) -> Iterator[None]:
    """Keep a file, or a directory that is replaced as a whole, for this process; as :func:`claimed`."""
    with _held(lock_beside(path), path, another=f"{option}=ANOTHER_PATH"):
        yield


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time make the file, or the replaced directory, `path`; others say for whom they wait."""
    with _held(lock_beside(path), path):
        yield


@contextmanager
def exclusive_within(directory: Path) -> Iterator[None]:
    """Let one process at a time fill `directory`; others say for whom they wait."""
    with _held(lock_within(directory), directory):
        yield


@contextmanager
def _held(lock: Path, path: Path, *, another: str | None = None) -> Iterator[None]:
    """Hold a lock; where another process does, wait, or raise a UserError with `another` as the remedy."""

    def tell(holder: str) -> None:
        say(f"Waiting for {holder}, which works on {path}", file=sys.stderr)

    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, path, on_wait=tell if another is None else None))
        except RetrievalError as error:
            problem, remedy = error.problem, error.remedy
            if isinstance(error, Held):
                problem, remedy = "Another process works in this directory", f"{error.remedy}, or {another}"
            raise UserError(problem, given=error.given, allowed=error.allowed, remedy=remedy) from error
        yield
