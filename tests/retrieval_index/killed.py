"""A build (or growth) in a process of its own, for tests that kill it: without torch, with a cheap encoder.

    python -m tests.retrieval_index.killed build|append DIRECTORY [RENAMES]

With RENAMES the process is ended, as by kill -9, in the place of its rename number RENAMES (counted from 1).
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index import generation, grow
from retrieval_index.build import build_index
from retrieval_index.grow import append_captions
from retrieval_index.planner import Plan
from retrieval_index.recall import Queries
from retrieval_index.settings import IndexSettings
from retrieval_index.stages import Job
from tests.retrieval_index.cheap_encoder import SOURCE, WIDTH, CheapEncoder
from tests.retrieval_index.vectors import unit

SETTINGS = IndexSettings(shard_rows=150, batch_size=64, kind="ivf_sq8", recall_k=5, recall_queries=40)


def queries() -> Queries:
    return Queries(unit(np.random.default_rng(3).standard_normal((40, WIDTH))), "pictures")


def end_at_rename(number: int) -> None:
    """Replace `os.replace` so that its call `number` ends the process."""
    rename, calls = os.replace, 0

    def counting(*paths: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)

    os.replace = counting  # type: ignore[assignment]


def in_parts(plan: Plan | None) -> Plan | None:
    """The plan with parts so small that there are several."""
    return replace(plan, part_rows=200) if plan is not None else None


def main(mode: str, directory: Path, renames: int | None) -> None:
    choose_plan, grown = generation.choose_plan, grow.grown
    generation.choose_plan = lambda *args, **options: in_parts(choose_plan(*args, **options))  # type: ignore[assignment]
    grow.grown = lambda *args: in_parts(grown(*args))  # type: ignore[assignment]
    if renames is not None:
        end_at_rename(renames)
    job = Job(CheapEncoder(), SOURCE, SETTINGS, queries)
    print("started", flush=True)
    if mode == "build":
        build_index(sorted(directory.glob("build*.txt")), directory / "index", job)
    else:
        append_captions(sorted(directory.glob("append*.txt")), directory / "index", job)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
