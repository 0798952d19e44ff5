"""Running cells: one subprocess each, a few at a time, with a log, and one that reads another's result after it.

A cell that fails leaves its log and does not stop the others, except those that would read its result.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tga.errors import UserError
from tga.evaluation.cells import LOG, RECORD, SUMMARY, Cell, cell_summary, is_cell, write_record
from tga.files import LOCK, RetrievalError, lock_within, locked, remove_ours
from tga.run_files import is_run_file

POLL_S = 2.0
NOT_STARTED = -1


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its exit code (NOT_STARTED where it did not run) and the last lines of its log."""

    cell: Cell
    code: int
    tail: str


def _nothing(_: object) -> None:
    """The callback of those who do not want to be told."""


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    threads: int,
    on_end: Callable[[Outcome], None] = _nothing,
    on_wait: Callable[[list[Cell]], None] = _nothing,
) -> list[Outcome]:
    """Run every cell, at most `jobs` at a time, and return how each ended, in the order given.

    A cell whose `after` is among them waits for it, and does not run where that fails; one whose `after` is not among
    them finds its result there.

    threads: CPU threads of each run (OMP_NUM_THREADS). on_end: called in this thread as a run ends; on_wait: every few
    seconds with the cells that are running. An interrupt ends the subprocesses before it is passed on.
    """
    runner = _Runner({**os.environ, "OMP_NUM_THREADS": str(threads)})
    outcomes: dict[Cell, Outcome] = {}
    waiting: dict[Cell, list[Cell]] = {}
    for cell in cells:
        if cell.after is not None and cell.after in cells:
            waiting.setdefault(cell.after, []).append(cell)

    def end(outcome: Outcome) -> list[Cell]:
        """Take note of it; the cells that may run now."""
        outcomes[outcome.cell] = outcome
        on_end(outcome)
        freed = waiting.pop(outcome.cell, [])
        if outcome.code == 0:
            return freed
        for cell in freed:
            end(Outcome(cell, NOT_STARTED, f"not started: {outcome.cell.name} failed, and this one reads its result"))
        return []

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        held = {cell for cells in waiting.values() for cell in cells}
        pending: set[Future[Outcome]] = {pool.submit(runner.run, cell) for cell in cells if cell not in held}
        try:
            while pending:
                done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    pending |= {pool.submit(runner.run, cell) for cell in end(future.result())}
                on_wait(runner.running())
        except BaseException:
            runner.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [outcomes[cell] for cell in cells]


class _Runner:
    """Starts subprocesses from several threads and can end all that are running."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._running: dict[Cell, subprocess.Popen[bytes]] = {}
        self._stopped = False

    def run(self, cell: Cell) -> Outcome:
        """Run one cell to its end, its output in the cell's log; what keeps it from starting is its outcome too."""
        log = cell.directory / LOG
        try:
            with locked(lock_within(cell.directory), cell.directory):  # until it is made ready; then by the run itself
                _empty(cell.directory)
                write_record(cell)
            with log.open("wb") as output:
                process = self._start(cell, output)
        except (UserError, RetrievalError, OSError) as error:
            return Outcome(cell, 1, str(error))
        if process is None:
            return Outcome(cell, NOT_STARTED, "not started")
        code = process.wait()
        with self._lock:
            del self._running[cell]
        if code == 0 and cell_summary(cell) is None:
            return Outcome(cell, 1, f"it ended well, but {cell.directory / SUMMARY} is missing or of another config")
        return Outcome(cell, code, _tail(log))

    def _start(self, cell: Cell, output: IO[bytes]) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                cell.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # As -P: what lies in the current directory (a yaml.py beside somebody's data) is no module of ours.
                env={**self._environment, "PYTHONSAFEPATH": "1"},
            )
            self._running[cell] = process
            return process

    def running(self) -> list[Cell]:
        """The cells whose subprocess is running, in the order of their start."""
        with self._lock:
            return list(self._running)

    def stop(self) -> None:
        """End what is running and start nothing more."""
        with self._lock:
            self._stopped = True
            for process in self._running.values():
                process.terminate()


def _empty(directory: Path) -> None:
    """A fresh directory; where a comparison made an older one, the files that its run wrote are removed."""
    if directory.exists():
        if not is_cell(directory) and [path.name for path in directory.iterdir() if path.name != LOCK]:
            raise UserError(
                "a run's directory holds something that no comparison wrote",
                given=directory,
                remedy="run_dir=ANOTHER, or move it away",
            )
        remove_ours(directory, lambda name: is_run_file(name) and name != RECORD)
        (directory / RECORD).unlink(missing_ok=True)  # last: a kill in between leaves the mark
    directory.mkdir(parents=True, exist_ok=True)


def _tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log; of a progress bar, which returns to the line's beginning, only its last state."""
    text = log.read_bytes().decode("utf-8", errors="replace")
    kept = [line.rstrip().rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
    return " | ".join([line for line in kept if line][-lines:])
