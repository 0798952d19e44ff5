"""The cells of a comparison: which runs there are, whether each one is done, and why it has to run again.

A cell is a run of a command in a directory of its own. It is done when its summary.json carries the config hash that is
wanted and its cell.json names what the run would read today: the content of the files that its config leads to and the
versions of what computes. So a comparison that was stopped goes on where it was, and what has changed is run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tga.files import read_object, write_json

LOG = "run.log"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
RECORD = "cell.json"  # also the mark of a directory that a comparison may empty
VERSION = "version_"


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        method, seed: its place in the table.
        directory: what the command fills.
        command: an argument list.
        config_hash: the hash that its summary must carry.
        reads: what the run reads, by name: digests of contents, and versions.
        after: the cell whose result this one reads; it runs first.
    """

    method: str
    seed: int
    directory: Path
    command: tuple[str, ...]
    config_hash: str
    reads: Mapping[str, str] = field(default_factory=dict, compare=False)
    after: Cell | None = None

    @property
    def name(self) -> str:
        """`method, seed N`."""
        return f"{self.method}, seed {self.seed}"

    def identity(self) -> dict[str, str]:
        """What the run reads now, the result of the cell before it included."""
        if self.after is None:
            return dict(self.reads)
        summary = self.after.directory / SUMMARY
        result = hashlib.sha256(summary.read_bytes()).hexdigest()[:16] if summary.is_file() else "missing"
        return {**self.reads, f"the run of {self.after.name}": result}


def cell_summary(cell: Cell) -> dict[str, Any] | None:
    """The cell's summary where it is there and of the config that is wanted, else None."""
    path = cell.directory / SUMMARY
    if not path.is_file():
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return summary if summary.get("config_hash") == cell.config_hash else None


def reason_to_run(cell: Cell) -> str | None:
    """Why the cell has to run (again); None where it is done."""
    if cell_summary(cell) is None:
        return "it was not finished" if (cell.directory / RECORD).is_file() else "it has not run yet"
    record = cell.directory / RECORD
    then: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))["reads"] if record.is_file() else {}
    changes = _changes(then, cell.identity())
    return "; ".join(changes) if changes else None


def write_record(cell: Cell) -> None:
    """Leave in the cell's directory what the run that now begins is of, and what it reads."""
    about = {"method": cell.method, "seed": cell.seed, "config_hash": cell.config_hash, "reads": cell.identity()}
    write_json(cell.directory / RECORD, about)


def is_cell(directory: Path) -> bool:
    """Whether a comparison made this directory: its record says of which run it is."""
    return {"method", "seed", "config_hash", "reads"} <= read_object(directory / RECORD).keys()


def cell_step(cell: Cell) -> int | None:
    """The optimiser step that a running cell last logged in its metrics.jsonl; None before the first."""
    path = cell.directory / METRICS
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is being written
    return int(json.loads(lines[-1])["step"]) if lines else None


def _changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, in words; digests say nothing to a reader, versions do."""
    said = []
    for name in sorted(then.keys() | now.keys()):
        before, after = then.get(name, "none"), now.get(name, "none")
        if before != after:
            said.append(f"{name} was {before} and is {after}" if name.startswith(VERSION) else f"{name} has changed")
    return said
