"""Running the cells of a comparison: one subprocess each, a few at a time, with a log, and only where needed.

A cell is a run of a training command in a directory of its own. It is done when its summary.json carries the config
hash that is wanted; so a comparison that was stopped goes on where it was, and one whose settings changed runs again
what they concern. A cell that fails leaves its log and does not stop the others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tga.errors import UserError

LOG = "run.log"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
MARK = ".cell"
POLL_S = 2.0


@dataclass(frozen=True)
class Cell:
    """One run: the command (an argument list) that fills `directory`, and the hash its summary must carry."""

    method: str
    seed: int
    directory: Path
    command: tuple[str, ...]
    config_hash: str

    @property
    def name(self) -> str:
        """`method, seed N`."""
        return f"{self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its exit code and the last lines of its log."""

    cell: Cell
    code: int
    tail: str


def cell_summary(cell: Cell) -> dict[str, Any] | None:
    """The cell's summary where it is there and of the config that is wanted, else None."""
    path = cell.directory / SUMMARY
    if not path.is_file():
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return summary if summary.get("config_hash") == cell.config_hash else None


def _nothing(_: object) -> None:
    """The callback of those who do not want to be told."""


def cell_step(cell: Cell) -> int | None:
    """The optimiser step that a running cell last logged in its metrics.jsonl; None before the first."""
    path = cell.directory / METRICS
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is being written
    return int(json.loads(lines[-1])["step"]) if lines else None


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    threads: int,
    on_end: Callable[[Outcome], None] = _nothing,
    on_wait: Callable[[list[Cell]], None] = _nothing,
) -> list[Outcome]:
    """Run every cell, at most `jobs` at a time, and return how each ended, in the order given.

    threads: CPU threads of each run (OMP_NUM_THREADS). on_end: called in this thread as a run ends; on_wait: every few
    seconds with the cells that are running. An interrupt ends the subprocesses before it is passed on.
    """
    runner = _Runner({**os.environ, "OMP_NUM_THREADS": str(threads)})
    outcomes: dict[Cell, Outcome] = {}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        pending = {pool.submit(runner.run, cell) for cell in cells}
        try:
            while pending:
                done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    outcome = future.result()
                    outcomes[outcome.cell] = outcome
                    on_end(outcome)
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
        self._running: dict[Cell, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, cell: Cell) -> Outcome:
        """Run one cell to its end, its output in the cell's log."""
        _empty(cell.directory)
        log = cell.directory / LOG
        with log.open("wb") as output:
            with self._lock:
                if self._stopped:
                    return Outcome(cell, -1, "not started")
                process = subprocess.Popen(
                    cell.command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=dict(self._environment),
                )
                self._running[cell] = process
            code = process.wait()
        with self._lock:
            del self._running[cell]
        if code == 0 and cell_summary(cell) is None:
            return Outcome(cell, 1, f"it ended well, but {cell.directory / SUMMARY} is missing or of another config")
        return Outcome(cell, code, _tail(log))

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
    """A fresh directory; an older one is removed only if a comparison made it."""
    if directory.exists():
        if any(directory.iterdir()) and not (directory / MARK).is_file():
            raise UserError(
                "a run's directory holds something that no comparison wrote",
                given=directory,
                remedy="run_dir=ANOTHER, or move it away",
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / MARK).touch()


def _tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log; of a progress bar, which returns to the line's beginning, only its last state."""
    text = log.read_bytes().decode("utf-8", errors="replace")
    kept = [line.rstrip().rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
    return " | ".join([line for line in kept if line][-lines:])
